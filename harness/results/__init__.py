"""Results: what runs left behind, read back and shown."""
