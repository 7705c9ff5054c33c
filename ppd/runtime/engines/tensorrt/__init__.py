"""TensorRT and TensorRT-RTX: engines built for this GPU, and what runs them."""
