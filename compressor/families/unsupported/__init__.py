"""What no family reads yet, and why."""
