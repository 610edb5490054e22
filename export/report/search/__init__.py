"""What a search found, shown to people."""
