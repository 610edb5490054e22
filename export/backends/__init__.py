"""Backends: each opens an artifact's graphs behind the same call."""
