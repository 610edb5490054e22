"""Qwen2-VL and Qwen2.5-VL: pictures at a size of their own, and rotations by time, row and column."""
