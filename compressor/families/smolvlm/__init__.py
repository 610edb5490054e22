"""Idefics3 and SmolVLM: pictures cut into rows of tiles, each tile told by its row and column."""
