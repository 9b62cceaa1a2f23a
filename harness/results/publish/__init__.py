"""Send results elsewhere: W&B, MLPerf's log format."""
