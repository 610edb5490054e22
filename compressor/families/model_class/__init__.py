"""A family of which a class of transformers tells nearly all: a vision tower, a projector, a decoder."""
