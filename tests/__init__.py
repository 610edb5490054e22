"""Tests; each name is a sentence that the tool must keep."""
