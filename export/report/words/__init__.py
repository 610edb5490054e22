"""What reports say: sentences and rows of tables."""
