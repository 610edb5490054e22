"""The stage that compares a device with the answers that travel in an artifact."""
