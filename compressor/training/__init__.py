"""Training: runs that go on from their checkpoint, and self-distillation of what a method learns."""
