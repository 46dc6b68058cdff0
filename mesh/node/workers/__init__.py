"""Worker processes of a node: the node's side. What runs inside of them is `inside`."""
