"""The dashboards there are, by the name of their file."""

from deploy.grafana.robustness import ROBUSTNESS
from deploy.grafana.service import SERVICE

DASHBOARDS = {"robustness": ROBUSTNESS, "service": SERVICE}
