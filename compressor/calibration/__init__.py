"""Measures what visual tokens do in each layer on a user's own data."""
