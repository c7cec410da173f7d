"""The style of every HTML page."""
