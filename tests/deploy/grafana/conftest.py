"""A Prometheus that has scraped the real server under mixed traffic."""

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import pytest

from benchmarks.traffic import SCENARIOS, Caller, outcome
from deploy.prometheus_process import PrometheusProcess
from tests.conftest import ROOT
from tests.serving import toy
from tests.serving.harness import ServerProcess

RULES = [ROOT / "deploy" / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
# Background measurements are frequent, so that a short run has all of them.
FLAGS = ("--probe-seconds=5", "--saliency-share=0.5", "--shadow-share=0.5", "--drift-samples=100")
CALLERS, PAUSE_SECONDS = 2, 0.2
VARIANTS = ("act-da", "clean", "da")
WINDOW_SECONDS = 20
LEAST_SECONDS, MOST_SECONDS = 25, 300
# Conditions that end the traffic; on a busy machine they take longer.
SEEN = (
    "count(speakerlens_probe_round_timestamp_seconds > 0) == 3",
    f"count(sum by (variant) (rate(speakerlens_prediction_decisions_total[{WINDOW_SECONDS}s])) > 0) == 3",
    f"count(sum by (variant) (rate(speakerlens_saliency_deletion_index_count[{WINDOW_SECONDS}s])) > 0) == 3",
    f"count(sum by (first, second) (rate(speakerlens_shadow_comparisons_total[{WINDOW_SECONDS}s])) > 0) == 3",
    "count(count by (variant) (speakerlens_drift_psi)) == 3",
    "count(count by (method) (speakerlens_requests_total)) >= 6",
    'count(speakerlens_requests_total{code!="OK"}) >= 3',
    "count(count by (variant) (speakerlens_gallery_speakers)) == 3",
    "count(speakerlens_store_up) == 1 and count(count by (audio) (speakerlens_outdated_speakers)) == 2",
    "speakerlens:errors:ratio_rate5m",
    f"min_over_time(up[{WINDOW_SECONDS // 4}s]) == 1",
)


@dataclass(frozen=True)
class Watched:
    """A Prometheus with data from `start` to `end`, in seconds since 1970."""

    prometheus: PrometheusProcess
    start: float
    end: float


@contextlib.contextmanager
def mixed_traffic(server: ServerProcess) -> Iterator[None]:
    """Send every kind of call, good and bad, from a few callers until the end of the `with`."""
    end = threading.Event()
    threads = [
        threading.Thread(target=_call, args=(Caller(server.ready["grpc"], list(VARIANTS), seed), end), daemon=True)
        for seed in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def _call(caller: Caller, end: threading.Event) -> None:
    weights = [scenario.weight for scenario in SCENARIOS]
    try:
        while not end.wait(PAUSE_SECONDS):
            outcome(caller.rng.choices(SCENARIOS, weights)[0], caller)
    finally:
        caller.channel.close()


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Serve three variants with probes and one refused bundle, send every kind of call, then stop the server."""
    folder = tmp_path_factory.mktemp("watched")
    for seed, variant in enumerate(VARIANTS):
        # The toy network is slow for long audio, on purpose; not here.
        bundle = toy.write_bundle(folder / "bundles", variant, 1, seed, slow_seconds=3600)
        toy.add_probes(bundle, seed)
    shutil.copytree(folder / "bundles" / "clean" / "1", folder / "bundles" / "clean" / "2")  # of the wrong version
    flags = (*FLAGS, f"--speakers={folder / 'speakers.sqlite'}")
    with contextlib.ExitStack() as running:
        server = running.enter_context(ServerProcess(folder / "bundles", *flags))
        with PrometheusProcess(folder / "prometheus", [urlsplit(server.ready["metrics"]).netloc], RULES) as prometheus:
            start = time.time()
            with mixed_traffic(server):
                time.sleep(LEAST_SECONDS)
                for condition in SEEN:
                    prometheus.wait_for(partial(prometheus.query, condition), MOST_SECONDS)
                # A scrape is stamped with its beginning: one in progress that will fail must not lie before the end.
                end = time.time() - 2 * prometheus.interval
            running.close()
            yield Watched(prometheus, start, end)
