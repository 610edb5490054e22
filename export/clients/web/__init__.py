"""A page for browsers: transformers.js, the artifact and one static page, without a network."""
