"""The way from pixels to the first token: the whole model of several exporters on one picture and prompt."""
