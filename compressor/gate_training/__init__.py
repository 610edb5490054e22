"""Trains gates: what they learn from, the training, and its checkpoint."""
