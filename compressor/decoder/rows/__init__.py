"""The rows of a call inside the decoder: where they stand, and how they become more."""
