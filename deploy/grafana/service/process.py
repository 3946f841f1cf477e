"""The servers as processes, and their work beside the requests."""

from deploy.grafana.expressions import INSTANCE, JOB, per_second
from deploy.grafana.model import Panel, Query, Row, Unit

PROCESS = f'job="{JOB}", {INSTANCE}'

PROCESS_ROW = Row(
    "Process and background",
    (
        Panel(
            "Processor time",
            "How many cores does each server keep busy?",
            "At the machine's cores, latency grows with every call: add servers, or give this one more.",
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
            "How much memory does each server hold?",
            "It steps up with each version and each longer audio, then stays. A steady slope is a leak: report it.",
            Unit.BYTES,
            (Query(f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Open files and connections",
            "How near is each server to the system's limit of open files (dashed)?",
            "Near it, new connections fail: raise the limit, or look for clients that open one a call.",
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
            "Does what runs beside the requests get its turn (maps of a sample, comparisons of variants)?",
            "dropped: the device is busy with requests, which go first; samples are fewer. failed: see the log.",
            Unit.PER_SECOND,
            (Query(per_second("background_total", by="work, outcome"), "{{work}} {{outcome}}"),),
            width=6,
            stacked=True,
        ),
    ),
)
