"""Vectors that this node keeps so that it need not buy them twice: sealed, on disk, cleared when their user asks."""
