"""The dashboard *Service*: availability, latency and load."""

from deploy.grafana.expressions import VARIABLES
from deploy.grafana.model import Dashboard
from deploy.grafana.service.device import DEVICE
from deploy.grafana.service.glance import GLANCE
from deploy.grafana.service.latency import LATENCY
from deploy.grafana.service.models import MODELS
from deploy.grafana.service.process import PROCESS_ROW
from deploy.grafana.service.store import STORE
from deploy.grafana.service.traffic import TRAFFIC

SERVICE = Dashboard(
    uid="speakerlens-service",
    title="speakerlens: Service",
    description="Is the service up, is it fast, and does it have capacity?",
    rows=(GLANCE, TRAFFIC, LATENCY, DEVICE, MODELS, STORE, PROCESS_ROW),
    variables=VARIABLES,
)
