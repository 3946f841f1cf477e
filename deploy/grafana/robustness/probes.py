"""Known speakers under known interference: what the models are worth now."""

from deploy.grafana.expressions import VARIANT, per_second, select
from deploy.grafana.model import Colour, Kind, Matrix, Panel, Query, Row, Threshold, Unit

SHORTFALL = (Threshold(0.05, Colour.WATCH), Threshold(0.2, Colour.BAD))
CORRUPTED = 'snr!=""'


def mean_of(gauge: str, *matchers: str, by: str = "variant") -> str:
    """Return the mean of a gauge of the probes over conditions and servers."""
    return f"avg by ({by}) ({select(gauge, VARIANT, *matchers)})"


def _named(expression: str) -> str:
    """With a label `condition` such as "noise 10 dB", made of `interference` and `snr`."""
    joined = f'label_join({expression}, "condition", " ", "interference", "snr")'
    with_snr = f'label_replace({joined}, "condition", "$1 $2 dB", "condition", "([^ ]+) ([^ ]+)")'
    return f'label_replace({with_snr}, "condition", "$1", "condition", "([^ ]+) ")'


def shortfall(by: str) -> str:
    """By how much the mean accuracy misses what was expected, on the server where that is most; below 0 it is better.

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
    "Probes: known speakers under known interference, asked on a timer",
    (
        _accuracy(
            "Accuracy on clean speech",
            "Without interference, is each variant as good as it was at its export (dashed)?",
            "Down by half: only the resampled or only the clean fail, see Accuracy by condition. Lower: wrong weights.",
            'snr=""',
        ),
        _accuracy(
            "Accuracy at 10 dB and above",
            "In weak interference, is each variant as good as it was at its export (dashed)?",
            "A line that leaves its dashes has lost something: see Shortfall by condition, and what was deployed then.",
            'snr=~"[1-9][0-9]+"',
        ),
        _accuracy(
            "Accuracy below 10 dB",
            "In strong interference, is each variant as good as it was at its export (dashed)?",
            "As beside. `clean` is far below the others by its training; another that joins it is not what it says.",
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
            height=10,
        ),
        Panel(
            "Shortfall by condition",
            "Where does a variant do worse than at its export, on the worst server? 0 is as expected, above 0 worse.",
            "One variant in every row: its weights. Every variant in `resampled`: the decoding. Roll it back.",
            Unit.SHARE,
            (Query(_named(shortfall("variant, interference, snr")), "{{condition}}"),),
            kind=Kind.TABLE,
            matrix=Matrix("condition", "variant"),
            thresholds=SHORTFALL,
            height=10,
        ),
        Panel(
            "Shortfall over time",
            "Since when does a variant miss what was expected of it, on the worst server?",
            "A step up is a change: what was deployed at that moment? Orange and red are where to look and to act.",
            Unit.SHARE,
            (Query(shortfall("variant"), "{{variant}}"),),
            thresholds=SHORTFALL,
            height=10,
        ),
        Panel(
            "Deletion index of the probes",
            "Do the models still look away from interference? 1 is blind to it, lower is better; dashed is expected.",
            "It rises and accuracy falls: the model has lost its robustness. It moves alone: the maps are broken.",
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
            "How long does a probe take, which waits until nobody else does?",
            "It grows with the load; at minutes, probes say what was, not what is.",
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
            "How long does it take to ask all probes?",
            "Near --probe-seconds the rounds never rest: ask less often, or ship fewer probes.",
            Unit.SECONDS,
            (Query(f"max by (variant) ({select('probe_round_duration_seconds', VARIANT)})", "{{variant}}"),),
            limits=(0, None),
            width=6,
        ),
    ),
)
