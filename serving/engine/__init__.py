"""Inference: ONNX Runtime sessions, batchers with their queues, and the scheduler of a device."""
