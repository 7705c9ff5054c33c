"""CUDA, as far as engines need it: checked calls, the device, the KV cache on it."""
