"""What a run refuses before the long work begins."""
