"""On which devices of torch the weights of a loaded original lie."""
