"""Models: the registry, checkpoints, tokenizers and trained prompt tokens, and the decoder that runs them."""
