"""Users' YAML and JSON: read into plain values, checked, and every failure told in one readable line."""
