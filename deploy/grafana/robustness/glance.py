"""The first look: numbers that say whether to look further."""

from deploy.grafana.expressions import FIRING, VARIANT, or_zero, quantile, select
from deploy.grafana.model import Colour, Number, Query, Row, Threshold, Unit
from deploy.grafana.robustness.agreement import disagreement
from deploy.grafana.robustness.drift import DRIFT
from deploy.grafana.robustness.probes import SHORTFALL, mean_of, shortfall

GLANCE = Row(
    "At a glance",
    (
        Number(
            "Accuracy on probes",
            "Of the utterances in the probes, interference included, which share is recognised now?",
            "Compare it with what was expected below: it need not be near 100 %, it must not fall.",
            Unit.SHARE,
            (Query(mean_of("probe_accuracy_ratio"), "{{variant}}"),),
            width=5,
        ),
        Number(
            "Worst shortfall",
            "By how much does the worst condition of a variant miss the accuracy that its export measured?",
            "Red: the model here is not the one that was exported, or its input is broken on the way. Roll it back.",
            Unit.SHARE,
            (Query(f"max by (variant) ({shortfall('variant, interference, snr')})", "{{variant}}"),),
            thresholds=SHORTFALL,
            width=5,
        ),
        Number(
            "Since the last round",
            "How old is what the probes say? Nothing: no round has ended yet.",
            "Well above --probe-seconds: the device is too busy for probes, or they fail. See Probe utterances.",
            Unit.SECONDS,
            (Query(f"time() - min({select('probe_round_timestamp_seconds', VARIANT)} > 0)", "Since the last round"),),
        ),
        Number(
            "SNR of traffic",
            "How far is the speech above the noise, for half of the requests?",
            "It falls: something is arriving in the callers' surroundings; the rows below say whether it matters.",
            Unit.DECIBELS,
            (Query(quantile(0.5, "input_snr_decibels"), "SNR of traffic"),),
        ),
        Number(
            "Disagreement",
            "Which share of the compared requests do the variants answer differently?",
            "It rises with falling SNR: interference. It rises on clean speech: a model is wrong.",
            Unit.SHARE,
            (Query(disagreement("job"), "Disagreement"),),
        ),
        Number(
            "Largest drift",
            "How far has any measure of the traffic moved from what the models were evaluated on?",
            "Above 0.25 it has moved: the row Drift says which measure, and of which variant.",
            Unit.RATIO,
            (Query(f"max({select('drift_psi', VARIANT)})", "Largest drift"),),
            thresholds=DRIFT,
        ),
        Number(
            "Alerts firing",
            "Is anything wrong that a rule knows of?",
            "Above 0: open Prometheus' page of alerts; each says what to do. They are red lines in all panels.",
            Unit.COUNT,
            (Query(or_zero(f"count({FIRING})"), "Alerts firing"),),
            thresholds=(Threshold(1, Colour.BAD),),
            width=2,
        ),
    ),
)
