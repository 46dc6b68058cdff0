"""The Python client of the mesh."""
