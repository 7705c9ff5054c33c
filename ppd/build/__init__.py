"""Build: TensorRT engines from a bundle, on the device that runs them. Needs onnx and TensorRT, never torch."""
