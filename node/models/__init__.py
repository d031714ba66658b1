"""The node's models: bringing, keeping, sharing and naming them. Joins inference.models with the mesh."""
