"""Rules on the metrics that a real Prometheus scrapes from a real server."""

import subprocess
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.programs import find
from deploy.prometheus_process import PrometheusProcess
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.deploy.prometheus import needs_prometheus
from tests.deploy.test_rules import RULE_FILES
from tests.serving import toy
from tests.serving.harness import ServerProcess, raw, talk

pytestmark = needs_prometheus


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Two variants, and a refused bundle of one of them."""
    for seed, variant in enumerate(("act-da", "clean")):
        toy.write_bundle(tmp_path / "bundles", variant, 1, seed)
    (tmp_path / "bundles" / "clean" / "2").mkdir()
    (tmp_path / "bundles" / "clean" / "2" / "bundle.json").write_text("{}", "utf-8")
    return tmp_path / "bundles"


def test_rules_hold_on_a_real_server(bundles: Path, tmp_path: Path) -> None:
    with ServerProcess(bundles, "--shadow-share=1", "--saliency-share=1", "--drift-samples=50") as server:
        with PrometheusProcess(
            tmp_path / "prometheus", [urlsplit(server.ready["metrics"]).netloc], RULE_FILES
        ) as prometheus:
            prometheus.wait_for(lambda: prometheus.query("up == 1"), 60)
            for seed in range(8):
                server.identify(pb.IdentifyRequest(audio=raw(talk(2.0, seed=seed))))
            for recorded in ("queue_fill:ratio_avg5m", "drift:psi_beyond_chance", "errors:ratio_rate5m"):
                prometheus.wait_for(partial(prometheus.query, f"speakerlens:{recorded}"), 60)
            prometheus.wait_for(lambda: prometheus.query('ALERTS{alertname="SpeakerlensBundleRefused"}'), 60)
            for group in prometheus.get("rules")["groups"]:
                for rule in group["rules"]:
                    assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))
            # Pending all of them: a rate needs two scrapes to see traffic.
            assert {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]} <= {
                "SpeakerlensBundleRefused",
                "SpeakerlensDrift",
                "SpeakerlensNoTraffic",
            }
            assert not [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
        promtool = find("promtool")
        assert promtool is not None
        page = server.metrics_text()
    done = subprocess.run([promtool, "check", "metrics"], input=page, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
