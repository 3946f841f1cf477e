"""Panels on loaded models, engines and refused bundles."""

from deploy.grafana.expressions import VARIANT, or_none, per_second, select, total
from deploy.grafana.model import Kind, Panel, Query, Row, Unit

MODELS = Row(
    "Models",
    (
        Panel(
            "Loaded models",
            "Which versions answer, and from which training data and code?",
            "Not what you deployed: see refused bundles. Servers differ: a rollout is in progress.",
            Unit.COUNT,
            (Query(select("model_info", VARIANT), "{{variant}} {{version}}"),),
            kind=Kind.TABLE,
            columns=("instance", "variant", "version", "code_revision", "training_data_digest"),
            width=16,
            height=5,
        ),
        Panel(
            "Engines",
            "Where do the models run?",
            "CPUExecutionProvider beside a GPU: ONNX Runtime did not find CUDA; the log's first lines say why.",
            Unit.COUNT,
            (Query(select("engine_info"), "{{provider}}"),),
            kind=Kind.TABLE,
            columns=("instance", "provider", "version"),
            height=5,
        ),
        Panel(
            "Bundles not served",
            "Which models on disk are refused, and why? `none` at 0: none are.",
            "docs/operation.md explains the reasons. Usually a copy was cut short: write it again.",
            Unit.COUNT,
            (
                Query(
                    or_none(f"{total(select('bundles_refused', VARIANT), 'variant, reason')} > 0", "variant"),
                    "{{variant}} {{reason}}",
                ),
            ),
            limits=(0, None),
        ),
        Panel(
            "Since the last scan for bundles",
            "Does the server still scan for new bundles?",
            "Above --watch: the disk hangs. Without --watch the server scans once, and this only grows.",
            Unit.SECONDS,
            (Query(f"time() - {select('bundles_scan_timestamp_seconds')}", "{{instance}}"),),
            limits=(0, None),
        ),
        Panel(
            "Engines reopened",
            "Do engines break, and do they recover? `none` at 0: none broke.",
            "repeatedly `failed`: the model does not answer; a broken CUDA context needs a restart.",
            Unit.PER_SECOND,
            (
                Query(
                    or_none(per_second("engine_rebuilds_total", VARIANT, by="variant, outcome"), "variant"),
                    "{{variant}} {{outcome}}",
                ),
            ),
            limits=(0, None),
        ),
    ),
)
