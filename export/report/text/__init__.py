"""Marked-up text: SVG and Markdown, written safely."""
