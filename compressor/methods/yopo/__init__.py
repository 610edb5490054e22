"""YOPO: visual tokens do less: in fewer heads, among neighbours, with a narrower MLP, in fewer layers."""
