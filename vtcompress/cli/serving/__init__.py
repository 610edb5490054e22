"""`vtcompress serve`."""
