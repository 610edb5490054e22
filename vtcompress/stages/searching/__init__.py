"""The search for the fastest plan that keeps the answers."""
