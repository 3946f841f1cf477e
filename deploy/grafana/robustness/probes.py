"""Panels on probes: known speakers under known interference."""

from deploy.grafana.expressions import VARIANT, per_second, select
from deploy.grafana.model import Colour, Kind, Matrix, Panel, Query, Row, Threshold, Unit

SHORTFALL = (Threshold(0.05, Colour.WATCH), Threshold(0.2, Colour.BAD))
CORRUPTED = 'snr!=""'


def mean_of(gauge: str, *matchers: str, by: str = "variant") -> str:
    """Return the mean of a gauge of the probes over conditions and servers."""
    return f"avg by ({by}) ({select(gauge, VARIANT, *matchers)})"


def _named(expression: str) -> str:
    """Return the expression with a label `condition`, such as "noise 10 dB", made of `interference` and `snr`."""
    joined = f'label_join({expression}, "condition", " ", "interference", "snr")'
    with_snr = f'label_replace({joined}, "condition", "$1 $2 dB", "condition", "([^ ]+) ([^ ]+)")'
    return f'label_replace({with_snr}, "condition", "$1", "condition", "([^ ]+) ")'


def shortfall(by: str) -> str:
    """Return how far accuracy is below its expectation on the worst server; negative if it is better.

    The mean over servers would hide one of many that is broken.
    """
    expected, found = (select(f"probe_{each}accuracy_ratio", VARIANT) for each in ("expected_", ""))
    return f"max by ({by}) (avg by (instance, {by}) ({expected} - {found}))"


def _accuracy(title: str, question: str, action: str, snr: str) -> Panel:
    return Panel(
        title,
        question,
        action,
        Unit.SHARE,
        (
            Query(mean_of("probe_accuracy_ratio", snr), "{{variant}}"),
            Query(mean_of("probe_expected_accuracy_ratio", snr), "{{variant}}, expected", reference=True),
        ),
        limits=(0, 1.05),
    )


PROBES = Row(
    "Probes: known speakers under known interference, run on a timer",
    (
        _accuracy(
            "Accuracy on clean speech",
            "Without interference, is each variant as good as it was at its export (dashed)?",
            "Down by half: only resampled or only clean probes fail, see Accuracy by condition. Lower: wrong weights.",
            'snr=""',
        ),
        _accuracy(
            "Accuracy at 10 dB and above",
            "In weak interference, is each variant as good as it was at its export (dashed)?",
            "Below its dashed line: see Shortfall by condition, and what was deployed then.",
            'snr=~"[1-9][0-9]+"',
        ),
        _accuracy(
            "Accuracy below 10 dB",
            "In strong interference, is each variant as good as it was at its export (dashed)?",
            "`clean` is far below the others by its training. Another variant at its level has wrong weights.",
            'snr=~"-.*|[0-9]"',
        ),
        Panel(
            "Accuracy by condition",
            "Under which interference is each variant right, and how often?",
            "`clean` low in noise: as it was trained. Every variant low in one row: that interference is hard.",
            Unit.SHARE,
            (Query(_named(mean_of("probe_accuracy_ratio", by="variant, interference, snr")), "{{condition}}"),),
            kind=Kind.TABLE,
            matrix=Matrix("condition", "variant"),
            floor=Colour.BAD,
            thresholds=(Threshold(0.5, Colour.WATCH), Threshold(0.8, Colour.GOOD)),
            limits=(0, 1),
            height=10,
        ),
        Panel(
            "Shortfall by condition",
            "Under which condition is a variant worse than at its export, on the worst server? 0 is as expected.",
            "One variant in every row: its weights. Every variant in `resampled`: decoding. Roll back.",
            Unit.SHARE,
            (Query(_named(shortfall("variant, interference, snr")), "{{condition}}"),),
            kind=Kind.TABLE,
            matrix=Matrix("condition", "variant"),
            thresholds=SHORTFALL,
            limits=(0, 1),
            height=10,
        ),
        Panel(
            "Shortfall over time",
            "Since when is a variant below its expected accuracy, on the worst server?",
            "A step up: see what was deployed then. Watch: look; bad: act.",
            Unit.SHARE,
            (Query(shortfall("variant"), "{{variant}}"),),
            thresholds=SHORTFALL,
            height=10,
        ),
        Panel(
            "Deletion index of the probes",
            "Do the maps still avoid interference? 1 is blind to it, lower is better; dashed is expected.",
            "Rises while accuracy falls: the model lost robustness. Changes alone: the maps are broken.",
            Unit.RATIO,
            (
                Query(mean_of("probe_deletion_index", CORRUPTED), "{{variant}}"),
                Query(
                    mean_of("probe_expected_deletion_index", CORRUPTED),
                    "{{variant}}, expected",
                    reference=True,
                ),
            ),
            limits=(0, None),
            width=6,
        ),
        Panel(
            "Latency of the probes",
            "How long does a probe take? It waits until the device is idle.",
            "It grows with the load; at minutes the probes' results are old.",
            Unit.SECONDS,
            (Query(mean_of("probe_latency_seconds"), "{{variant}}"),),
            limits=(0, None),
            width=6,
        ),
        Panel(
            "Probe utterances",
            "Do the probes run, and how do they end?",
            "failed: they got no answer, see the log. Nothing at all: --probe-seconds 0, or bundles without probes.",
            Unit.PER_SECOND,
            (Query(per_second("probe_utterances_total", VARIANT, by="variant, outcome"), "{{variant}} {{outcome}}"),),
            stacked=True,
            width=6,
        ),
        Panel(
            "Duration of a round",
            "How long does a round of all probes take?",
            "Near --probe-seconds: raise the period, or export fewer probes.",
            Unit.SECONDS,
            (Query(f"max by (variant) ({select('probe_round_duration_seconds', VARIANT)})", "{{variant}}"),),
            limits=(0, None),
            width=6,
        ),
    ),
)
