"""Prometheus metrics on a registry and a port of their own: what the service does, and how robust its answers are.

Labels are bounded: methods, statuses, reasons, kinds and bands are fixed sets, variants are the loaded ones. What a
client writes never becomes a label. docs/metrics.md has every metric.
"""

from speakerlens.serving.metrics.robustness import Robustness
from speakerlens.serving.metrics.service import NO_VARIANT, Metrics, ModelInfo, variant_label

__all__ = ["NO_VARIANT", "Metrics", "ModelInfo", "Robustness", "variant_label"]
