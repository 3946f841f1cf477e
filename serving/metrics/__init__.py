"""Prometheus metrics of the service and of its robustness, on a registry and a port of their own.

Labels are bounded: methods, statuses, reasons, kinds and bands are fixed sets, variants are the loaded ones. Client
strings never become labels. docs/metrics.md lists every metric.
"""

from speakerlens.serving.metrics.robustness import Robustness
from speakerlens.serving.metrics.service import Metrics, ModelInfo

__all__ = ["Metrics", "ModelInfo", "Robustness"]
