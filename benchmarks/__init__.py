"""Measurements that take longer than a test; each prints the command's own settings with its figures."""
