"""From torch modules to ONNX files with one weight file."""
