"""Latency of requests while probes run, against requests without probes.

  python -m benchmarks.probe_cost build/demo/bundles --variant act-da

Serves a folder of bundles with rounds of probes that fill half of the time, and sends one request after another, with a
pause between them. Requests during a round sometimes wait for a probe, those between rounds do not. Rounds alternate
with pauses every few seconds, so other work on the machine affects both. Prints both latencies and the device's time.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.damage import newest
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving.harness import ServerProcess, raw, talk

AUDIO_SECONDS = 3.0
PERCENTILES = (50, 90, 99)


def main() -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Measure the latency that probes add to requests.")
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--period", type=float, default=60.0, help="--probe-seconds of the server")
    parser.add_argument("--pause", type=float, default=0.1, help="between a request's answer and the next, in seconds")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        source = newest(args.bundles / args.variant)
        shutil.copytree(source, Path(root) / args.variant / source.name)
        with ServerProcess(Path(root), f"--probe-seconds={args.period:g}", "--window-seconds=3") as server:
            asked, rounds = _ask(server, args.variant, args.seconds, args.pause)
            metrics = server.metrics()
    for name, during in (("during a round", True), ("between rounds", False)):
        chosen = [took for at, took in asked if any(start <= at <= end for start, end in rounds) == during]
        if not chosen:
            sys.stdout.write(f"{name}: no requests; rounds take longer than half of the period on this machine\n")
            continue
        shown = ", ".join(f"{1000 * np.percentile(chosen, each):.1f} ms at {each} %" for each in PERCENTILES)
        sys.stdout.write(f"{name}: {len(chosen)} requests, {shown}\n")
    spent = metrics["process_cpu_seconds_total"]
    sys.stdout.write(f"processor time of the server since its start: {spent:.1f} s\n")
    lengths = ", ".join(f"{end - start:.1f} s" for start, end in rounds)
    sys.stdout.write(f"rounds: {lengths}\n")
    for kind in ("predict", "explain", "verify"):
        labels = f'{{kind="{kind}",variant="{args.variant}"}}'
        count, total = (metrics[f"speakerlens_batch_duration_seconds_{part}{labels}"] for part in ("count", "sum"))
        sys.stdout.write(f"{kind}: {count:.0f} batches of {1000 * total / max(count, 1):.1f} ms in the mean\n")
    return 0


def _ask(
    server: ServerProcess, variant: str, seconds: float, pause: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return start and duration of each request, and start and end of each round, in wall-clock seconds."""
    request = pb.IdentifyRequest(audio=raw(talk(AUDIO_SECONDS)), models=[pb.ModelSelector(variant=variant)])
    asked: list[tuple[float, float]] = []
    rounds: dict[float, float] = {}
    began, looked = time.monotonic(), 0.0
    while time.monotonic() - began < seconds:
        at, started = time.time(), time.monotonic()
        server.identify(request)
        asked.append((at, time.monotonic() - started))
        time.sleep(pause)
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            metrics = server.metrics()
            end = metrics[f'speakerlens_probe_round_timestamp_seconds{{variant="{variant}"}}']
            if end:
                duration = metrics[f'speakerlens_probe_round_duration_seconds{{variant="{variant}"}}']
                rounds[end] = end - duration
    last = max(rounds)
    # The start of the round in progress at the end is not known yet.
    return [each for each in asked if each[0] <= last], [(start, end) for end, start in rounds.items()]


if __name__ == "__main__":
    sys.exit(main())
