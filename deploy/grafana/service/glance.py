"""The first row: numbers whose state is good while nothing is wrong."""

from deploy.grafana.expressions import FIRING, VARIANT, or_zero, per_second, quantile, select, total
from deploy.grafana.model import Colour, Number, Query, Row, Threshold, Unit
from deploy.grafana.service.latency import AT_ONCE
from deploy.grafana.service.process import PROCESS
from deploy.grafana.service.traffic import CALLS, SHARE_OF_ERRORS

GLANCE = Row(
    "At a glance",
    (
        Number(
            "Servers up",
            "How many servers does Prometheus reach?",
            "Fewer than you run: check that the missing one runs and that its metrics port can be reached.",
            Unit.COUNT,
            (Query(f"sum(up{{{PROCESS}}})", "Servers up"),),
            floor=Colour.BAD,
            thresholds=(Threshold(1, Colour.GOOD),),
        ),
        Number(
            "Alerts firing",
            "Does any alert fire?",
            "Above 0: Prometheus' page of alerts says what to do. Alerts are vertical lines in all panels.",
            Unit.COUNT,
            (Query(or_zero(f"count({FIRING})"), "Alerts firing"),),
            thresholds=(Threshold(1, Colour.BAD),),
        ),
        Number(
            "Calls",
            "How many calls arrive?",
            "0 where there should be traffic: look at the clients and at what balances them.",
            Unit.CALLS_PER_SECOND,
            (Query(CALLS, "Calls"),),
        ),
        Number(
            "Server errors",
            "Which share of the calls failed because of the server, including overload?",
            "Above 0.1 %: the panels Errors by status and Rejections by reason say which, the server's log says why.",
            Unit.SHARE,
            (Query(SHARE_OF_ERRORS, "Server errors"),),
            thresholds=(Threshold(0.001, Colour.WATCH), Threshold(0.01, Colour.BAD)),
        ),
        Number(
            "Slowest of 100",
            "How long do calls take (99th percentile)? Without live streams.",
            "Too long for clients: the row Latency shows where the time goes.",
            Unit.SECONDS,
            (Query(quantile(0.99, "request_duration_seconds", VARIANT, AT_ONCE), "Slowest of 100"),),
            thresholds=(Threshold(1, Colour.WATCH), Threshold(5, Colour.BAD)),
        ),
        Number(
            "Fullest queue",
            "How full is the fullest queue?",
            "Near 100 % calls are refused: add servers, or send less.",
            Unit.SHARE,
            (Query(f"max({select('queue_depth', VARIANT)} / {select('queue_capacity', VARIANT)})", "Fullest queue"),),
            thresholds=(Threshold(0.5, Colour.WATCH), Threshold(0.9, Colour.BAD)),
        ),
        Number(
            "Audio",
            "How many seconds of audio are answered in a second?",
            "Equals the number of live speakers; compare with the device's utilisation.",
            Unit.TIMES_REAL_TIME,
            (Query(per_second("audio_seconds_total"), "Audio"),),
        ),
        Number(
            "Refused bundles",
            "Is there a bundle on disk that is not served?",
            "Above 0: the row Models says which and why; docs/operation.md explains the reasons.",
            Unit.COUNT,
            (Query(or_zero(total(select("bundles_refused", VARIANT))), "Refused bundles"),),
            thresholds=(Threshold(1, Colour.BAD),),
        ),
    ),
)
