"""The `mesh` command: flags become configuration here, and nowhere else is the environment read."""
