"""The Open Inference Protocol: the same models and queues for clients of Triton and KServe."""
