"""What computes: graphs on ONNX Runtime, the queues before them, and the device whose turns they take."""
