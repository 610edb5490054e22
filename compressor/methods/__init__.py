"""The methods, one a file: the paper's rule as plain functions on plain data."""
