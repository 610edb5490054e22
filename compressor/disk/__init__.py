"""Files: written whole, locked, named and digested; the formats that no other folder owns."""
