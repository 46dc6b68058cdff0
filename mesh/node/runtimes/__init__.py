"""What executes a version: ONNX Runtime, or a user's Python class."""
