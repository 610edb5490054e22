"""The plan: what visual tokens do in each layer, and what that costs. No torch."""
