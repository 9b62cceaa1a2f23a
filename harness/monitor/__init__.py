"""What is measured while a run trains: time, energy, clocks, stragglers, the machine itself."""
