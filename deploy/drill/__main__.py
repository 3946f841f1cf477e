"""The drill: noise and babble come and go before a real server, and Prometheus' alerts must tell of it.

  python -m deploy.drill --minutes 5

Starts a server on the demo's bundles, a Prometheus with the rules of deploy/prometheus in fast motion, and the traffic
of deploy/traffic: clean speech, rising noise, babble, clean speech. The exit status is 0 where the alerts that should
fire did while there was interference, and not before, and had cleared at the end. The output folder holds drill.png,
the panels over the drill, drill.json, what it was drawn from, and the rules and logs.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.drill import picture, rules
from deploy.drill.alerts import Expected, Watch, faults
from deploy.grafana.plots import Span
from deploy.grafana.preview import address
from deploy.prometheus_process import PrometheusProcess
from deploy.traffic.calling import Load, Traffic, clock
from deploy.traffic.programme import CLEAN, Programme, parse
from deploy.traffic.sounds import find
from tests.serving.harness import ServerProcess

PROGRAMME = "clean@1.25 noise:20..-5@1.5 babble:0@1 clean@1.25"
MINUTES = 5.0
# Ten minutes of the rules are half a minute of a drill of five.
SCALE_PER_MINUTE = 1 / 100
INTERVAL_SECONDS = 2.0
START_SECONDS = 60.0
LOOK_SECONDS = 1.0
REPORT_SECONDS = 5.0
POINTS = 300
FLAGS = (
    "--threads=1",  # two would wait for one another wherever the machine has other work as well
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
    """Runs the drill; 0 where the alerts did what they should, 1 where not, 2 where it cannot begin."""
    options = _parser().parse_args(arguments)
    for folder in (options.bundles, options.sounds):
        if not folder.is_dir():
            print(f"error: there is no {folder}: run `make demo` first", file=sys.stderr)
            return 2
    programme = parse(PROGRAMME, options.minutes)
    files = rules.write(options.out / "rules", SCALE_PER_MINUTE * options.minutes, INTERVAL_SECONDS)
    storage = options.out / "prometheus"
    shutil.rmtree(storage, ignore_errors=True)
    with ServerProcess(options.bundles, *FLAGS) as server:
        try:
            with PrometheusProcess(storage, [address(server)], files, INTERVAL_SECONDS) as prometheus:
                return _drill(server, prometheus, programme, options)
        finally:
            (options.out / "server.log").write_text(server.log, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m deploy.drill", description="Noise comes and goes; alerts must tell of it."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=MINUTES, help="of traffic (default: %(default)s)")
    add("--bundles", type=Path, default=Path("build/demo/bundles"), help="what is served (default: %(default)s)")
    add("--sounds", type=Path, default=Path("build/demo/corpus"), help="as of deploy.traffic (default: %(default)s)")
    add("--rate", type=float, default=2.5, help="calls a second, each to all variants (default: %(default)s)")
    add("--out", type=Path, default=Path("build/drill"), help="folder for all that it writes (default: %(default)s)")
    return parser


def _drill(
    server: ServerProcess, prometheus: PrometheusProcess, programme: Programme, options: argparse.Namespace
) -> int:
    """Plays the programme, tells what happens, and judges it."""
    variants = sorted({name.partition("/")[0] for name in server.ready["models"]})
    load = Load(options.rate, explain_share=0.0, together=True)
    watch = Watch(prometheus)
    prometheus.wait_for(lambda: prometheus.query("up == 1") and not _down(prometheus), START_SECONDS)
    with Traffic(server.ready["grpc"], find(options.sounds), programme, variants, load) as traffic:
        started, reported = time.time(), 0.0
        while traffic.playing():
            traffic.wait(LOOK_SECONDS)
            elapsed = time.time() - started
            for change in watch.look(elapsed):
                print(f"{clock(elapsed)}  {change}", flush=True)
            if elapsed - reported >= REPORT_SECONDS:
                reported = elapsed
                print(traffic.take(), flush=True)
    noisy = [(begin, end) for phase, begin, end in programme.spans() if phase.kind != CLEAN]
    found = faults(watch.changes, EXPECTED, noisy[0][0], noisy[-1][1])
    _record(prometheus, programme, watch, started, options)
    for fault in found:
        print(f"FAULT {fault}")
    print(f"{'The drill failed' if found else 'The alerts told of it, and cleared'}: see {options.out / 'drill.png'}")
    return 1 if found else 0


def _down(prometheus: PrometheusProcess) -> bool:
    """Whether an alert says that there is nothing to scrape, as before the first scrape; others may wait meanwhile."""
    return any(alert["labels"]["alertname"] == "SpeakerlensTargetDown" for alert in prometheus.get("alerts")["alerts"])


def _record(
    prometheus: PrometheusProcess, programme: Programme, watch: Watch, started: float, options: argparse.Namespace
) -> None:
    marks = {started + begin: str(phase) for phase, begin, _ in programme.spans()}
    span = Span(started, started + programme.seconds, max(INTERVAL_SECONDS, programme.seconds / POINTS), marks)
    shown = picture.dashboard(
        "speakerlens: a drill of robustness",
        f"{options.rate:g} calls a second to all variants, {programme.seconds:.0f} s: "
        + ", then ".join(str(phase) for phase in programme.phases),
    )
    facts = {
        "programme": [{"phase": str(phase), "begin": begin, "end": end} for phase, begin, end in programme.spans()],
        "calls_per_second": options.rate,
        "server_flags": FLAGS,
        "rules_shortened_to": SCALE_PER_MINUTE * options.minutes,
        "scrape_interval_seconds": INTERVAL_SECONDS,
        "alerts": [{**vars(change), "seconds": round(change.seconds, 1)} for change in watch.changes],
    }
    picture.write(shown, prometheus, span, INTERVAL_SECONDS, options.out / "drill.png", facts)


if __name__ == "__main__":
    sys.exit(main())
