"""Rewrites of a graph between the exporter and the file."""
