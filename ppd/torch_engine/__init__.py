"""The reference: the PyTorch decoder as an engine, rebuilt from a bundle's own weights."""
