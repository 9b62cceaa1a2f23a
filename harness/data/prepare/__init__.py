"""Make datasets ready: get, pack and check."""
