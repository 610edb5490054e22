"""Mixture of depths: routers choose which visual rows run a layer, and the others pass by it."""
