"""Models by content: CIDs, store, verified fetching, sources, signed manifests, tokenizers. Knows market/ only."""
