"""Several plans of one model side by side."""
