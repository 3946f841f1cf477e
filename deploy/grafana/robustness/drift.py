"""Panels on drift of the traffic from the evaluation set."""

from deploy.grafana.expressions import VARIANT, select
from deploy.grafana.model import Colour, Kind, Matrix, Panel, Query, Row, Threshold, Unit

# How the population stability index is commonly read: below 0.1 nothing has moved, above 0.25 something has.
DRIFT = (Threshold(0.1, Colour.WATCH), Threshold(0.25, Colour.BAD))

MOVED = Row(
    "Drift: the traffic against the evaluation set in the bundle",
    (
        Panel(
            "Drift by measure",
            "Which measure drifted, and for which variant? Below 0.1: none; above 0.25: drift.",
            "Its panel above shows the direction. With few samples the index is large by chance: see the next panel.",
            Unit.RATIO,
            (Query(f"max by (measure, variant) ({select('drift_psi', VARIANT)})", "{{measure}}"),),
            kind=Kind.TABLE,
            matrix=Matrix("measure", "variant"),
            thresholds=DRIFT,
            limits=(0, 1),
            height=11,
        ),
        Panel(
            "Drift over time",
            "Since when has the traffic drifted? The largest of the variants, by measure.",
            "A step is a new kind of caller or a broken gateway; a slope is a slow change.",
            Unit.RATIO,
            (Query(f"max by (measure) ({select('drift_psi', VARIANT)})", "{{measure}}"),),
            thresholds=DRIFT,
            limits=(0, None),
            height=11,
        ),
        Panel(
            "Samples behind the drift",
            "How many of the last answers is the drift computed from?",
            "Below a few hundred, wait: chance looks like drift.",
            Unit.COUNT,
            (Query(f"min by (measure) ({select('drift_samples', VARIANT)})", "{{measure}}"),),
            limits=(0, None),
            height=11,
        ),
    ),
)
