"""What a compression method must say of itself, and what calibration can measure for it."""
