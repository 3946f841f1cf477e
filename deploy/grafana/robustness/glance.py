"""The first row: numbers that show whether to look further."""

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
            "Which share of the probe utterances, with interference, is recognised?",
            "Compare with the expected accuracy below: it need not be near 100 %, but must not fall.",
            Unit.SHARE,
            (Query(mean_of("probe_accuracy_ratio"), "{{variant}}"),),
            width=5,
        ),
        Number(
            "Worst shortfall",
            "How far is the worst condition of a variant below its accuracy at export?",
            "Bad: the model is not the exported one, or its input is damaged. Roll it back.",
            Unit.SHARE,
            (Query(f"max by (variant) ({shortfall('variant, interference, snr')})", "{{variant}}"),),
            thresholds=SHORTFALL,
            width=5,
        ),
        Number(
            "Since the last round",
            "How old is the last round of probes? Empty: no round has ended yet.",
            "Well above --probe-seconds: the device is too busy for probes, or they fail. See Probe utterances.",
            Unit.SECONDS,
            (Query(f"time() - min({select('probe_round_timestamp_seconds', VARIANT)} > 0)", "Since the last round"),),
        ),
        Number(
            "SNR of traffic",
            "How far is the speech above the noise (median)?",
            "Falls: callers have more noise; the rows below show whether it matters.",
            Unit.DECIBELS,
            (Query(quantile(0.5, "input_snr_decibels"), "SNR of traffic"),),
        ),
        Number(
            "Disagreement",
            "Which share of the compared requests gets different answers?",
            "Rises with falling SNR: interference. Rises on clean speech: a model is wrong.",
            Unit.SHARE,
            (Query(disagreement("job"), "Disagreement"),),
        ),
        Number(
            "Largest drift",
            "How far is any measure of the traffic from the evaluation?",
            "Above 0.25: the row Drift shows the measure and the variant.",
            Unit.RATIO,
            (Query(f"max({select('drift_psi', VARIANT)})", "Largest drift"),),
            thresholds=DRIFT,
        ),
        Number(
            "Alerts firing",
            "Does any alert fire?",
            "Above 0: Prometheus' page of alerts says what to do. Alerts are vertical lines in all panels.",
            Unit.COUNT,
            (Query(or_zero(f"count({FIRING})"), "Alerts firing"),),
            thresholds=(Threshold(1, Colour.BAD),),
            width=2,
        ),
    ),
)
