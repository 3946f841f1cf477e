"""A Prometheus that has watched the real server under mixed traffic."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from deploy.grafana.preview import FLAGS, address, mixed_traffic
from deploy.prometheus_process import PrometheusProcess
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import ServerProcess

RULES = [ROOT / "deploy" / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
VARIANTS = ("act-da", "clean", "da")
WINDOW_SECONDS = 20
LEAST_SECONDS, MOST_SECONDS = 25, 300
# What has happened when the traffic was enough, on however busy a machine.
SEEN = (
    "count(speakerlens_probe_round_timestamp_seconds > 0) == 3",
    f"count(sum by (variant) (rate(speakerlens_prediction_decisions_total[{WINDOW_SECONDS}s])) > 0) == 3",
    f"count(sum by (variant) (rate(speakerlens_saliency_deletion_index_count[{WINDOW_SECONDS}s])) > 0) == 3",
    f"count(sum by (first, second) (rate(speakerlens_shadow_comparisons_total[{WINDOW_SECONDS}s])) > 0) == 3",
    "count(count by (variant) (speakerlens_drift_psi)) == 3",
    "count(count by (method) (speakerlens_requests_total)) >= 6",
    'count(speakerlens_requests_total{code!="OK"}) >= 3',
    "speakerlens:errors:ratio_rate5m",
    f"min_over_time(up[{WINDOW_SECONDS // 4}s]) == 1",
)


@dataclass(frozen=True)
class Watched:
    """A Prometheus with data from `start` to `end`, in seconds since 1970."""

    prometheus: PrometheusProcess
    start: float
    end: float


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Three variants with probes, one bundle that is refused, every kind of call; then the server is gone."""
    folder = tmp_path_factory.mktemp("watched")
    for seed, variant in enumerate(VARIANTS):
        # The toy network is slow for long audio, on purpose; not here.
        bundle = toy.write_bundle(folder / "bundles", variant, 1, seed, slow_seconds=3600)
        toy.add_probes(bundle, seed)
    shutil.copytree(folder / "bundles" / "clean" / "1", folder / "bundles" / "clean" / "2")  # of the wrong version
    flags = (*FLAGS, f"--speakers={folder / 'speakers.sqlite'}")
    with contextlib.ExitStack() as running:
        server = running.enter_context(ServerProcess(folder / "bundles", *flags))
        with PrometheusProcess(folder / "prometheus", [address(server)], RULES) as prometheus:
            start = time.time()
            with mixed_traffic(server):
                time.sleep(LEAST_SECONDS)
                for condition in SEEN:
                    prometheus.wait_for(partial(prometheus.query, condition), MOST_SECONDS)
                # A scrape counts from its beginning: one that is under way and will fail must not lie before the end.
                end = time.time() - 2 * prometheus.interval
            running.close()
            yield Watched(prometheus, start, end)
