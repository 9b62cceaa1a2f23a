"""Rows and results: their schema, and where they are written."""
