"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures at a size of their own, and rotations by time, row and column."""
