"""The dashboards as pictures, from a Prometheus that has data or from a short run of the real server.

  python -m deploy.grafana.preview                                        # a run of two minutes
  python -m deploy.grafana.preview --url http://127.0.0.1:9090 --minutes 60

Without --url it starts a server on the demo's bundles, a Prometheus that scrapes it each second, traffic whose noise
rises and falls, and beside it every kind of call of benchmarks/traffic.py, good and bad.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.traffic import SCENARIOS, Caller, outcome
from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.drawing import draw
from deploy.grafana.plots import Span
from deploy.prometheus_process import PrometheusProcess
from tests.serving.harness import ServerProcess

DEMO, OUT = Path("build/demo"), Path("build/dashboards")
CALLERS, PAUSE_SECONDS = 2, 0.2
POINTS = 240
PROGRAMME = "clean@1 noise:20..-5@1 clean@1"
# Whatever is measured in the background is measured often, so that a short run shows it.
SMOOTHED_SECONDS = 5.0  # as if scrapes were so far apart: rates of a second are mostly chance
FLAGS = ("--probe-seconds=5", "--saliency-share=0.5", "--shadow-share=0.5", "--drift-samples=100")


def main() -> int:
    """Draws every dashboard; the exit status is 0 where that worked."""
    parser = argparse.ArgumentParser(description="Draw the dashboards as pictures.")
    parser.add_argument("--url", help="a Prometheus that has the data; without it, one is run, and a server")
    parser.add_argument("--interval", type=float, default=15.0, help="its scrape interval in seconds (%(default)s)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of data, up to now (%(default)s)")
    parser.add_argument("--demo", type=Path, default=DEMO, help="the demo, which is served without --url (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the pictures (%(default)s)")
    arguments = parser.parse_args()
    seconds = 60 * arguments.minutes
    if arguments.url:
        pictures(arguments.url, seconds, arguments.interval, arguments.out)
        return 0
    if not (arguments.demo / "bundles").is_dir():
        print(f"error: no bundles in {arguments.demo}: run `make demo` first", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(arguments.demo / "bundles", *FLAGS, f"--speakers={folder}/speakers.sqlite") as server,
        PrometheusProcess(Path(folder), [address(server)]) as prometheus,
        mixed_traffic(server),
    ):
        print(f"{seconds:g} s of traffic", flush=True)
        command = [sys.executable, "-m", "deploy.traffic", arguments.demo / "corpus", "--server", server.ready["grpc"]]
        command += ["--minutes", f"{arguments.minutes:g}", "--programme", PROGRAMME]
        played = subprocess.run(command, check=False)
        pictures(prometheus.url, seconds, SMOOTHED_SECONDS, arguments.out)
    return played.returncode


def pictures(url: str, seconds: float, interval: float, out: Path) -> None:
    """Draws every dashboard into a folder, from the last so many seconds."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.time()
    span = Span(end - seconds, end, max(1.0, seconds / POINTS))
    for stem, dashboard in DASHBOARDS.items():
        path = out / f"{stem}.png"
        draw(dashboard, url, span, path, scrape_interval=interval)
        print(path, flush=True)


def address(server: ServerProcess) -> str:
    """HOST:PORT of a server's metrics page."""
    return str(server.ready["metrics"]).removeprefix("http://").partition("/")[0]


@contextmanager
def mixed_traffic(server: ServerProcess) -> Iterator[None]:
    """Every kind of call, good and bad, from a few callers, until the end of the `with`."""
    variants = sorted({name.partition("/")[0] for name in server.ready["models"]})
    end = threading.Event()
    threads = [
        threading.Thread(target=_call, args=(Caller(server.ready["grpc"], variants, seed), end), daemon=True)
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
            outcome(caller.dice.choices(SCENARIOS, weights)[0], caller)
    finally:
        caller.channel.close()


if __name__ == "__main__":
    sys.exit(main())
