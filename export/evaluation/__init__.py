"""Artifacts as models of evaluation harnesses."""
