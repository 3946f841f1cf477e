"""CPU time of measuring the sound of a request, against the CPU time of the request, over all threads.

    python -m benchmarks.sound_cost build/demo/bundles clean

Starts a server on these bundles, sends it Predict and Explain requests for 3 s of the bundle's own speech, one at a
time, and reads the process's CPU time before and after; one thread per model, as several would spin while they wait.
In between, `measures.sound.measure_sound` and its parts are timed in this process on the same samples, so that both see
the same machine. Reports medians, and the fifth percentile for machines that have other work.
Linux only.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from speakerlens.measures import sound
from speakerlens.measures.snr import RATE, Array, analyse, snr_db
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving.harness import ServerProcess

SECONDS = 3
WARM_UP, REQUESTS, TIMES = 10, 20, 20
"""Requests of each kind per round; several are timed together, as the process's clock ticks every 10 ms."""


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="a folder of bundles, such as build/demo/bundles")
    parser.add_argument("variant", help="the one to ask")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sound_cost.json"))
    arguments = parser.parse_args()
    speech = spoken(arguments.bundles / arguments.variant)
    analysed = analyse(speech)
    parts: dict[str, Callable[[], object]] = {
        "hear": lambda: sound.measure_sound(speech),
        "frames": lambda: analyse(speech),
        "snr": lambda: snr_db(analysed),
        "speech share": lambda: sound._speech_share(analysed),  # noqa: SLF001
        "clipped share": lambda: sound.clipped_share(speech),
        "bandwidth": lambda: sound._bandwidth_hz(speech, analysed.energy),  # noqa: SLF001
    }
    requests = {name: request(speech, arguments.variant, name == "explain") for name in ("predict", "explain")}
    microseconds: dict[str, list[float]] = {name: [] for name in (*requests, *parts)}
    with ServerProcess(arguments.bundles, "--threads=1") as server:
        for asked in requests.values():
            for _ in range(WARM_UP):
                server.identify(asked)
        for _ in range(arguments.rounds):
            for name, asked in requests.items():
                before = spent_seconds(server.process.pid)
                for _ in range(REQUESTS):
                    server.identify(asked)
                microseconds[name].append((spent_seconds(server.process.pid) - before) / REQUESTS * 1e6)
            for name, part in parts.items():
                microseconds[name].extend(timed(part) for _ in range(TIMES))
    medians = {name: round(statistics.median(values), 1) for name, values in microseconds.items()}
    least = {name: round(float(np.quantile(values, 0.05)), 1) for name, values in microseconds.items()}
    shares = {name: round(medians["hear"] / medians[name], 4) for name in requests}
    least_shares = {name: round(least["hear"] / least[name], 4) for name in requests}
    for name, median in medians.items():
        print(f"{name:14} median {median:9.1f} us   least {least[name]:9.1f} us")
    for name, share in shares.items():
        print(f"hear over {name}: medians {100 * share:.2f} %, least {100 * least_shares[name]:.2f} %")
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
        "load_average": os.getloadavg()[0],
        "seconds_of_audio": SECONDS,
        "median_cpu_microseconds": medians,
        "least_cpu_microseconds": least,
        "hear_over_request": shares,
        "least_hear_over_request": least_shares,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def spoken(variant: Path) -> Array:
    """Return 3 s of the probe utterances of the variant's newest version, concatenated, float32 at 16 kHz."""
    version = max(
        (folder for folder in variant.iterdir() if folder.name.isdigit()), key=lambda folder: int(folder.name)
    )
    read = [soundfile.read(file, dtype="float32")[0] for file in sorted((version / "utterances").glob("*.flac"))]
    return np.resize(np.concatenate(read), SECONDS * RATE)


def request(speech: Array, variant: str, explained: bool) -> pb.IdentifyRequest:
    """Return the audio as a client sends it."""
    raw = pb.RawAudio(samples=speech.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    return pb.IdentifyRequest(
        audio=pb.Audio(raw=raw),
        models=[pb.ModelSelector(variant=variant)],
        explain=pb.ExplainOptions() if explained else None,
    )


def spent_seconds(process: int) -> float:
    """Return a process's CPU time, user and system, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(part: Callable[[], object]) -> float:
    """Return the CPU time of a call in this thread, in microseconds."""
    started = time.thread_time_ns()
    part()
    return (time.thread_time_ns() - started) / 1e3


if __name__ == "__main__":
    main()
