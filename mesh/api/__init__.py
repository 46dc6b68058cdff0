"""The protocol as Python values: messages (own descriptor pool), tensors (numpy <-> v2) and statuses.

Imports `mesh.core` and nothing else of the mesh, so that the client package can carry it along.
"""
