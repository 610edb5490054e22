"""Several artifacts side by side."""
