"""What people read of an artifact."""
