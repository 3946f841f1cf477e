"""Play noise and babble to a real server, and check that Prometheus' alerts fire and clear.

  python -m deploy.drill --minutes 5

Starts a server on the demo's bundles, a Prometheus with the rules of deploy/prometheus at a shorter time scale, and the
traffic of deploy/traffic: clean speech, rising noise, babble, clean speech. The exit status is 0 if the expected alerts
fired during the interference, not before it, and had cleared at the end. The output folder holds drill.json (series and
alerts), drill.png (drawn from it), the rules and the logs.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy.drill import picture, rules
from deploy.drill.alerts import Expected, Watch, faults
from deploy.prometheus_process import PrometheusProcess
from deploy.traffic.player import Load, Traffic, clock
from deploy.traffic.scenario import CLEAN, Scenario, parse
from deploy.traffic.source import find
from tests.serving.harness import ServerProcess

SCENARIO = "clean@1.25 noise:20..-5@1.5 babble:0@1 clean@1.25"
MINUTES = 5.0
# Ten minutes of the rules become half a minute in a drill of five minutes.
SCALE_PER_MINUTE = 1 / 100
INTERVAL_SECONDS = 2.0
START_SECONDS = 60.0
POLL_SECONDS = 1.0
REPORT_SECONDS = 5.0
POINTS = 300
FLAGS = (
    "--threads=1",  # two threads wait for each other on a machine with other work
    "--window-seconds=3",  # the default, as the bundles' baselines have it
    "--probe-seconds=120",
    "--shadow-share=1",
    "--saliency-share=0.2",
    "--drift-samples=60",
)
EXPECTED = (
    Expected("SpeakerlensInterferenceArriving", {"first": "act-da", "second": "clean"}),
    Expected("SpeakerlensDrift", {"measure": "snr_db"}),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drill; return 0 if the alerts behaved as expected, 1 if not, 2 if it could not start."""
    options = _parser().parse_args(arguments)
    for folder in (options.bundles, options.audio):
        if not folder.is_dir():
            print(f"error: no folder {folder}: run `make demo` first", file=sys.stderr)
            return 2
    scenario = parse(SCENARIO, options.minutes)
    files = rules.write(options.out / "rules", SCALE_PER_MINUTE * options.minutes, INTERVAL_SECONDS)
    storage = options.out / "prometheus"
    shutil.rmtree(storage, ignore_errors=True)
    with ServerProcess(options.bundles, *FLAGS) as server:
        try:
            target = urlsplit(server.ready["metrics"]).netloc
            with PrometheusProcess(storage, [target], files, INTERVAL_SECONDS) as prometheus:
                return _drill(server, prometheus, scenario, options)
        finally:
            (options.out / "server.log").write_text(server.log, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m deploy.drill", description="Play noise to a server, and check that alerts fire and clear."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=MINUTES, help="length of the traffic (default: %(default)s)")
    add("--bundles", type=Path, default=Path("build/demo/bundles"), help="bundles to serve (default: %(default)s)")
    add("--audio", type=Path, default=Path("build/demo/corpus"), help="corpus or bundles (default: %(default)s)")
    add("--rate", type=float, default=2.5, help="calls a second, each to all variants (default: %(default)s)")
    add("--out", type=Path, default=Path("build/drill"), help="output folder (default: %(default)s)")
    return parser


def _drill(
    server: ServerProcess, prometheus: PrometheusProcess, scenario: Scenario, options: argparse.Namespace
) -> int:
    """Play the scenario, print what happens, and return 0 if the alerts behaved as expected."""
    variants = sorted({name.partition("/")[0] for name in server.ready["models"]})
    load = Load(options.rate, explain_share=0.0, together=True)
    watch = Watch(prometheus)
    prometheus.wait_for(lambda: prometheus.query("up == 1") and not _down(prometheus), START_SECONDS)
    with Traffic(server.ready["grpc"], find(options.audio), scenario, variants, load) as traffic:
        started, reported = time.time(), 0.0
        while traffic.playing():
            traffic.wait(POLL_SECONDS)
            elapsed = time.time() - started
            for change in watch.poll(elapsed):
                print(f"{clock(elapsed)}  {change}", flush=True)
            if elapsed - reported >= REPORT_SECONDS:
                reported = elapsed
                print(traffic.take(), flush=True)
    noisy = [(begin, end) for phase, begin, end in scenario.spans() if phase.kind != CLEAN]
    found = faults(watch.changes, EXPECTED, noisy[0][0], noisy[-1][1])
    _record(prometheus, scenario, watch, started, options)
    for fault in found:
        print(f"FAULT {fault}")
    print(f"{'The drill failed' if found else 'The alerts fired and cleared'}: see {options.out / 'drill.png'}")
    return 1 if found else 0


def _down(prometheus: PrometheusProcess) -> bool:
    """Return whether the alert on missing targets is pending or firing, as before the first scrape."""
    return any(alert["labels"]["alertname"] == "SpeakerlensTargetDown" for alert in prometheus.get("alerts")["alerts"])


def _record(
    prometheus: PrometheusProcess, scenario: Scenario, watch: Watch, started: float, options: argparse.Namespace
) -> None:
    step = max(INTERVAL_SECONDS, scenario.seconds / POINTS)
    facts = {
        "scenario": [{"phase": str(phase), "begin": begin, "end": end} for phase, begin, end in scenario.spans()],
        "calls_per_second": options.rate,
        "server_flags": FLAGS,
        "rules_shortened_to": SCALE_PER_MINUTE * options.minutes,
        "scrape_interval_seconds": INTERVAL_SECONDS,
        "alerts": [{**vars(change), "seconds": round(change.seconds, 1)} for change in watch.changes],
        "panels": picture.collect(prometheus, started, started + scenario.seconds, step, INTERVAL_SECONDS),
    }
    picture.write(facts, options.out / "drill.json")


if __name__ == "__main__":
    sys.exit(main())
