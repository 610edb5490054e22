"""Shows a document: as one HTML file, or as Markdown."""
