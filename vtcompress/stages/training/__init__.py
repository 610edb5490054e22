"""What all stages that train have in common: the file that they write, and the model that they train."""
