"""The two TensorRTs: engines built, found and run."""
