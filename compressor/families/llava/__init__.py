"""LLaVA 1.5 and its like."""
