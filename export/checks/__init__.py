"""The two checks, never mixed into one number: export fidelity (numerical) and compression loss (quality)."""
