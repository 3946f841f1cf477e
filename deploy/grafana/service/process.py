"""Panels on the processes and their background work."""

from deploy.grafana.expressions import INSTANCE, JOB, per_second
from deploy.grafana.model import Panel, Query, Row, Unit

PROCESS = f'job="{JOB}", {INSTANCE}'

PROCESS_ROW = Row(
    "Process and background",
    (
        Panel(
            "Processor time",
            "How many cores does each server keep busy?",
            "At the number of cores latency grows with every call: add servers or cores.",
            Unit.CORES,
            (
                Query(
                    f"sum by (instance) (rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Memory",
            "How much memory does each server use?",
            "It steps up with each version and longer audio, then stays. A steady slope is a leak: report it.",
            Unit.BYTES,
            (Query(f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Open files and connections",
            "How many files does each server have open, and how many may it (dashed)?",
            "Near the limit new connections fail: raise it, or find clients that open one for each call.",
            Unit.COUNT,
            (
                Query(f"process_open_fds{{{PROCESS}}}", "{{instance}}"),
                Query(f"min(process_max_fds{{{PROCESS}}})", "limit", reference=True),
            ),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Background work",
            "Does background work run (maps of a sample, comparisons of variants)?",
            "dropped: the device is busy with requests, which go first; samples are fewer. failed: see the log.",
            Unit.PER_SECOND,
            (Query(per_second("background_total", by="work, outcome"), "{{work}} {{outcome}}"),),
            width=6,
            stacked=True,
        ),
    ),
)
