"""Panels on predictions and saliency maps."""

from deploy.grafana.expressions import VARIANT, per_second, quantile
from deploy.grafana.model import Colour, Panel, Query, Row, Threshold, Unit


def _by_variant(histogram: str) -> tuple[Query, ...]:
    return (Query(quantile(0.5, histogram, VARIANT, by="variant"), "{{variant}}"),)


def _share_unknown() -> str:
    known = per_second("prediction_decisions_total", VARIANT, by="variant")
    unknown = per_second("prediction_decisions_total", VARIANT, 'decision="unknown"', by="variant")
    return f"({unknown} or 0 * {known}) / ({known} > 0)"


ANSWERS = Row(
    "Predictions and saliency maps",
    (
        Panel(
            "Probability of the best",
            "How high is the best speaker's probability (median)?",
            "Falls for all variants: the input changed. Falls for one: that model changed.",
            Unit.SHARE,
            _by_variant("prediction_top1_probability"),
            limits=(0, 1),
        ),
        Panel(
            "Margin to the second",
            "How far is the best speaker ahead of the second (median)?",
            "It falls before accuracy does: look at SNR and drift.",
            Unit.SHARE,
            _by_variant("prediction_margin"),
            limits=(0, 1),
        ),
        Panel(
            "Entropy",
            "How uncertain is each variant (median)? 0: certain; 0.7: two equal speakers.",
            "It rises with interference, most for `clean`. Without interference: unknown speakers, see the next panel.",
            Unit.NATS,
            _by_variant("prediction_entropy_nats"),
            limits=(0, None),
        ),
        Panel(
            "Unknown speakers",
            "Which share of the requests does each variant answer with `unknown`?",
            "Rises for all at a high SNR: unknown speakers. At a low SNR: the speech is lost in noise.",
            Unit.SHARE,
            (Query(_share_unknown(), "{{variant}}"),),
            limits=(0, 1),
        ),
        Panel(
            "Deletion index of traffic",
            "Do the maps avoid the estimated noise? 1 is blind to it, lower is better.",
            "Near 1: answers rest on noise. Counts explained requests, and a sample (--saliency-share).",
            Unit.RATIO,
            _by_variant("saliency_deletion_index"),
            thresholds=(Threshold(1, Colour.WATCH),),
            limits=(0, None),
        ),
        Panel(
            "Concentration of the maps",
            "Is the saliency on few bins (1) or on all (0)?",
            "A jump without a new version: the input changed. At 0 or 1: the maps are broken.",
            Unit.RATIO,
            _by_variant("saliency_concentration"),
            limits=(0, 1),
        ),
    ),
)
