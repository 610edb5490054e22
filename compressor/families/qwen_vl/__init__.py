"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures at their own size, and rotations by time, row and column."""
