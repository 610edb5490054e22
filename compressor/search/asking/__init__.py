"""The questions of a search as they are run: their pictures seen once, their answers forced and scored."""
