"""What the models say, and what they looked at."""

from deploy.grafana.expressions import VARIANT, per_second, quantile
from deploy.grafana.model import Colour, Panel, Query, Row, Threshold, Unit


def _by_variant(histogram: str) -> tuple[Query, ...]:
    return (Query(quantile(0.5, histogram, VARIANT, by="variant"), "{{variant}}"),)


def _share_unknown() -> str:
    known = per_second("prediction_decisions_total", VARIANT, by="variant")
    unknown = per_second("prediction_decisions_total", VARIANT, 'decision="unknown"', by="variant")
    return f"({unknown} or 0 * {known}) / ({known} > 0)"


ANSWERS = Row(
    "What the models say, and what they looked at",
    (
        Panel(
            "Probability of the best",
            "How sure is each variant of the speaker it names, for half of the requests?",
            "It falls for all: the input changed. For one: that model did.",
            Unit.SHARE,
            _by_variant("prediction_top1_probability"),
            limits=(0, 1),
        ),
        Panel(
            "Margin to the second",
            "How far is the best speaker ahead of the second, for half of the requests?",
            "It shrinks before accuracy does: look at SNR and drift now.",
            Unit.SHARE,
            _by_variant("prediction_margin"),
            limits=(0, 1),
        ),
        Panel(
            "Entropy",
            "Between how many speakers does each variant waver, for half of the requests? 0: none; 0.7: two.",
            "It rises with interference, and most for `clean`. Without interference: strangers, see beside.",
            Unit.NATS,
            _by_variant("prediction_entropy_nats"),
            limits=(0, None),
        ),
        Panel(
            "Unknown speakers",
            "Which share of the requests does each variant answer with `unknown`?",
            "It rises for all at a good SNR: strangers call. At a bad SNR: the models do not hear them any more.",
            Unit.SHARE,
            (Query(_share_unknown(), "{{variant}}"),),
            limits=(0, 1),
        ),
        Panel(
            "Deletion index of traffic",
            "Do the models look away from what is estimated to be noise? 1 is blind to it, lower is better.",
            "It nears 1: answers rest on noise. Only explained requests count, and a sample (--saliency-share).",
            Unit.RATIO,
            _by_variant("saliency_deletion_index"),
            thresholds=(Threshold(1, Colour.WATCH),),
            limits=(0, None),
        ),
        Panel(
            "Concentration of the maps",
            "Do the models look at few places (1) or everywhere (0)?",
            "A jump without a new version: the input is of another kind. At 0 or 1: the maps are broken.",
            Unit.RATIO,
            _by_variant("saliency_concentration"),
            limits=(0, 1),
        ),
    ),
)
