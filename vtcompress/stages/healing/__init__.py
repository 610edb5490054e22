"""The stage that heals a compressed decoder, and reports on it."""
