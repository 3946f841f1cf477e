"""Panels on agreement between variants."""

from deploy.grafana.expressions import select, total
from deploy.grafana.model import Panel, Query, Row, Unit

DIFFERENT = 'agreement="different"'


def _pairs(*matchers: str, by: str) -> str:
    """Return comparisons per second of pairs with a chosen variant on either side."""
    sides = ('first=~"$variant"', 'second=~"$variant"')
    rates = (f"rate({select('shadow_comparisons_total', side, *matchers)}[$__rate_interval])" for side in sides)
    return total(" or ".join(rates), by)


def disagreement(by: str) -> str:
    """Return the share of comparisons with different answers; 0 while there is none."""
    everything = _pairs(by=by)
    return f"({_pairs(DIFFERENT, by=by)} or 0 * {everything}) / ({everything} > 0)"


AGREEMENT = Row(
    "Do the variants agree?",
    (
        Panel(
            "Disagreement by pair",
            "Which two variants answer differently, and how often?",
            "`clean` against the others: interference is arriving. The augmented two: one of them is not right.",
            Unit.SHARE,
            (Query(disagreement("first, second"), "{{first}} and {{second}}"),),
            limits=(0, 1),
        ),
        Panel(
            "Disagreement by SNR",
            "At which SNR do variants answer differently?",
            "High only in the low bands: noise. High above 20 dB: a model is wrong, or the speakers are unknown.",
            Unit.SHARE,
            (Query(disagreement("snr_band"), "{{snr_band}}"),),
            limits=(0, 1),
        ),
        Panel(
            "Comparisons",
            "How many comparisons is that, and at which SNR?",
            "Few: raise --shadow-share. None while there are calls: the device has no idle time.",
            Unit.PER_SECOND,
            (Query(_pairs(by="snr_band"), "{{snr_band}}"),),
            stacked=True,
        ),
    ),
)
