"""A router: stateless, takes clients' calls and carries them to a node that holds the model."""
