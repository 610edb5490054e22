"""Known answers that travel in an artifact, and what a device makes of the same pictures and prompts."""
