"""The two gRPC APIs, `speakerlens.v1` and the Open Inference Protocol: translate messages, compute nothing."""
