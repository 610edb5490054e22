"""The two halves of an export, in torch and in ONNX Runtime; they are never in memory together."""
