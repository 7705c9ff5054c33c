"""Planning: what a tree is worth, which one is the fastest for a curve L(N), and the trees that travel with a model."""
