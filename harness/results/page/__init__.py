"""The HTML page of a comparison: tables and figures in one file."""
