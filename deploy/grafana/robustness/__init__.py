"""The dashboard *Robustness*: whether the models work on the current traffic, and why not."""

from deploy.grafana.expressions import VARIABLES
from deploy.grafana.model import Dashboard
from deploy.grafana.robustness.agreement import AGREEMENT
from deploy.grafana.robustness.answers import ANSWERS
from deploy.grafana.robustness.drift import MOVED
from deploy.grafana.robustness.glance import GLANCE
from deploy.grafana.robustness.probes import PROBES
from deploy.grafana.robustness.searches import SEARCHES
from deploy.grafana.robustness.sound import SOUND

ROBUSTNESS = Dashboard(
    uid="speakerlens-robustness",
    title="speakerlens: Robustness",
    description="Do the models still work on the current traffic, and if not, why?",
    rows=(GLANCE, PROBES, SOUND, ANSWERS, SEARCHES, AGREEMENT, MOVED),
    variables=VARIABLES,
)
