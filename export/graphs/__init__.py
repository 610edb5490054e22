"""What graphs are called and what sizes their axes take: declared once."""
