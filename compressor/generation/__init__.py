"""What a model asks for when tokens are picked: its settings, and the rules that follow."""
