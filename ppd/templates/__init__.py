"""Chat templates, rendered in a process of their own: they are programs that came with a model."""
