"""A node: holds loaded model versions on its devices and answers inference."""
