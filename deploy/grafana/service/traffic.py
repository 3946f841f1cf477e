"""Panels on calls, refusals and errors."""

from deploy.grafana.expressions import VARIANT, or_none, or_zero, per_second
from deploy.grafana.model import Colour, Panel, Query, Row, Threshold, Unit

# Statuses that the service is to blame for, as the alerts count them; the others are the caller's, or refusals in time.
OURS = 'code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED"'
CALLS = per_second("requests_total", VARIANT)
SHARE_OF_ERRORS = f"{or_zero(per_second('requests_total', VARIANT, OURS))} / {CALLS}"

TRAFFIC = Row(
    "Traffic and errors",
    (
        Panel(
            "Calls by method",
            "Which calls arrive, and how often?",
            "A method that jumps or vanishes is a client that changed: ask its owner before you add servers.",
            Unit.CALLS_PER_SECOND,
            (Query(per_second("requests_total", VARIANT, by="method"), "{{method}}"),),
            stacked=True,
        ),
        Panel(
            "Errors by status",
            "How do calls fail? `none` at 0: none failed.",
            "INVALID_ARGUMENT and NOT_FOUND are the callers' mistakes; RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED are "
            "overload; INTERNAL, UNAVAILABLE and UNKNOWN are the server's, and the log has more.",
            Unit.CALLS_PER_SECOND,
            (
                Query(
                    or_none(per_second("requests_total", VARIANT, 'code!="OK"', by="code"), "code"),
                    "{{code}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Rejections by reason",
            "Why were calls refused? `none` at 0: none were.",
            "queue_full, in_flight, held: more servers or fewer calls. deadline: clients wait for less than the queue "
            "takes. Others name what is wrong with the audio or the request: tell the caller.",
            Unit.CALLS_PER_SECOND,
            (Query(or_none(f"{per_second('rejections_total', by='reason')} > 0", "reason"), "{{reason}}"),),
            stacked=True,
        ),
        Panel(
            "Share of server errors",
            "Does the service meet its objective of 99.9 %?",
            "Lines: 0.1 % and 1 % of the calls. Above 1 % for minutes: roll back what changed last.",
            Unit.SHARE,
            (Query(SHARE_OF_ERRORS, "server errors"),),
            thresholds=(Threshold(0.001, Colour.WATCH), Threshold(0.01, Colour.BAD)),
            limits=(0, None),
        ),
        Panel(
            "Answers by variant",
            "Which model does the work, and how much of it is explained or verified?",
            "Explaining costs about twice as much as predicting: where it grows, the device fills sooner.",
            Unit.PER_SECOND,
            (Query(per_second("answers_total", VARIANT, by="variant, kind"), "{{variant}} {{kind}}"),),
            stacked=True,
        ),
        Panel(
            "Failures of a single model",
            "Does one variant fail where others answer? `none` at 0: none does.",
            "INTERNAL, UNAVAILABLE: its version or its engine is broken; see its log lines, and take the version back. "
            "RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED: it has too much to do.",
            Unit.PER_SECOND,
            (
                Query(
                    or_none(
                        f"{per_second('model_failures_total', VARIANT, by='variant, code')} > 0",
                        "variant",
                    ),
                    "{{variant}} {{code}}",
                ),
            ),
            stacked=True,
        ),
    ),
)
