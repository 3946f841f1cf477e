"""Panels on latency and its phases."""

from deploy.grafana.expressions import VARIANT, buckets, mean, quantile
from deploy.grafana.model import Kind, Panel, Query, Row, Unit

# The duration of a live stream says nothing about the service.
AT_ONCE = 'method!="IdentifyStream"'

LATENCY = Row(
    "Latency",
    (
        Panel(
            "Latency by quantile",
            "How long do callers wait, by quantile? Without live streams.",
            "The median rises: more work. Only the top rises: queues, or long audio beside short.",
            Unit.SECONDS,
            tuple(
                Query(quantile(level, "request_duration_seconds", VARIANT, AT_ONCE), name)
                for level, name in ((0.5, "half"), (0.9, "9 of 10"), (0.99, "99 of 100"))
            ),
        ),
        Panel(
            "Slowest of 20 by method",
            "Which method is slow (95th percentile)?",
            "Batches may be slow, Identify may not: the next panel shows what it waits for.",
            Unit.SECONDS,
            (Query(quantile(0.95, "request_duration_seconds", VARIANT, AT_ONCE, by="method"), "{{method}}"),),
        ),
        Panel(
            "Where the time goes",
            "Which phase do answered identifications spend their time in, on average?",
            "queue: the device is the limit. inference: the model. decode, encode: --codec-threads, and what is sent.",
            Unit.SECONDS,
            (Query(mean("phase_duration_seconds", by="phase"), "{{phase}}"),),
            stacked=True,
        ),
        Panel(
            "Phases at worst",
            "Which phase makes slow calls slow (95th percentile of each phase)?",
            "Far above the mean on the left: bursts of calls, or long recordings.",
            Unit.SECONDS,
            (Query(quantile(0.95, "phase_duration_seconds", by="phase"), "{{phase}}"),),
        ),
        Panel(
            "All latencies",
            "How are the latencies distributed?",
            "Two bands are two kinds of calls (short and long audio, say); a band that climbs is a queue that grows.",
            Unit.SECONDS,
            (Query(buckets("request_duration_seconds", VARIANT, AT_ONCE), "{{le}}"),),
            kind=Kind.HEATMAP,
            width=16,
        ),
    ),
)
