"""Kinds of decoder layers, beside the plain one: what a plan may ask of one."""
