"""Export trained runs as verified model bundles."""

import os

# ONNX Runtime reads this on its first import; its telemetry is on by default.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
