"""Carrying gRPC messages as bytes: the seam (`transport`) and its engines."""
