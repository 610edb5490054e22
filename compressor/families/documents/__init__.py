"""Families that read documents: pictures at a size of their own, through towers of their own."""
