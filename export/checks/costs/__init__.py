"""What a machine's backend takes for layers of a model's dimensions, measured on random weights."""
