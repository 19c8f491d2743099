"""Searches over the configuration: trials, and what a search leaves behind for people."""
