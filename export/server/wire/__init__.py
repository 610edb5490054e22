"""OpenAI's wire format: what a request says, and the documents that answer it."""
