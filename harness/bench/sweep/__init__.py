"""Settings, code versions and numbers of ranks compared in interleaved trials."""
