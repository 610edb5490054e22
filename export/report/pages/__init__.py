"""The pages of one artifact: HTML, Markdown, model card."""
