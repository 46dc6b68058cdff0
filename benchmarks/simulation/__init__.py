"""A mesh in virtual time: the real placement code over nodes and requests that cost nothing."""
