"""The stage that trains what methods learn, and reports on it."""
