"""The operating system's side: console, files, signals, cores, compilers, processes."""
