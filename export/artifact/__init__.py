"""The artifact on disk: its manifest and files, written whole, verified when opened."""
