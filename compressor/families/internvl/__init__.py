"""InternVL 3 and 3.5, as transformers has them."""
