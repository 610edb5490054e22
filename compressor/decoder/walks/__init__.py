"""How measures go through the layers of a decoder, layer by layer."""
