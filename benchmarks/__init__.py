"""Benchmarks: the mesh beside its peers, in the same run, on the same model. `make bench` runs them."""
