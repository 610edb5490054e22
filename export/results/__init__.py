"""What checks and measurements found, as data that the manifest keeps; read without torch."""
