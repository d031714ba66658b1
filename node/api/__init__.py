"""The HTTP doors of a node, one module each."""
