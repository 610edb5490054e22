"""Trains gates: what they learn from, and the training."""
