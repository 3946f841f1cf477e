"""Checkpoint in, verified model bundle out."""

import os

# Read when ONNX Runtime is first imported; its telemetry is on otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
