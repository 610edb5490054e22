"""What only a machine with a GPU can check: scripts, not collected by pytest."""
