"""Characters of strangers' words that act on what shows them, and what reports show in their place."""

import re

ACTS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""For a regular expression: controls but for tab and line ends, separators that break lines, what turns
words round, halves of characters. Marks of direction and joiners stay: scripts need them, and nothing else
moves by them."""

# And what else no XML document may hold.
_FORBIDDEN = re.compile(f"[{ACTS}\ufffe\uffff]")


def printable(words: str) -> str:
    """Return words for HTML, SVG and Markdown with what acts on a reader, or XML forbids, replaced."""
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", words)
