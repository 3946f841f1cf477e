"""Panels on queues and the device."""

from deploy.grafana.expressions import VARIANT, mean, per_second, quantile, select
from deploy.grafana.model import Panel, Query, Row, Unit

DEVICE = Row(
    "Queues, batches and device",
    (
        Panel(
            "Queues",
            "How many jobs wait for the device, and how many may (dashed)?",
            "A full queue refuses calls: add servers, or raise --queue-size if clients can wait.",
            Unit.COUNT,
            (
                Query(f"max by (variant, kind) ({select('queue_depth', VARIANT)})", "{{variant}} {{kind}}"),
                Query(f"min(max by (kind) ({select('queue_capacity', VARIANT)}))", "room", reference=True),
            ),
            limits=(0, None),
        ),
        Panel(
            "Device's utilisation",
            "Which share of the time does the device compute, and for which model?",
            "Near 100 % on each server: full load. Low while queues are long: another bottleneck.",
            Unit.SHARE,
            (
                Query(
                    per_second("batch_duration_seconds_sum", VARIANT, by="variant, kind")
                    + f" / on() group_left() sum({select('engine_instances')})",
                    "{{variant}} {{kind}}",
                ),
            ),
            stacked=True,
            limits=(0, None),
        ),
        Panel(
            "Requests in work",
            "How many calls are in the server at once?",
            "At --max-in-flight more are refused. Many in work and little computed: slow clients.",
            Unit.COUNT,
            (Query(f"sum by (instance) ({select('requests_in_flight')})", "{{instance}}"),),
            limits=(0, None),
        ),
        Panel(
            "Batch size",
            "How many utterances are computed together, on average?",
            "1 under load: utterances differ too much in length, or --max-batch is too small for a GPU.",
            Unit.COUNT,
            (Query(mean("batch_size", VARIANT, by="variant, kind"), "{{variant}} {{kind}}"),),
            limits=(0, None),
        ),
        Panel(
            "Time of a batch",
            "How long does a batch take on the device (95th percentile)?",
            "Other jobs wait that long: if it is too long, lower --max-batch-seconds.",
            Unit.SECONDS,
            (
                Query(
                    quantile(0.95, "batch_duration_seconds", VARIANT, by="variant, kind"),
                    "{{variant}} {{kind}}",
                ),
            ),
        ),
        Panel(
            "Audio and device time",
            "How much audio is answered in a second, and how much device time does it take?",
            "Their ratio is the cost of a second of audio. It rises with more variants or more explained requests.",
            Unit.TIMES_REAL_TIME,
            (
                Query(per_second("audio_seconds_total"), "seconds of audio a second"),
                Query(per_second("batch_duration_seconds_sum", VARIANT), "seconds of device a second", reference=True),
            ),
        ),
    ),
)
