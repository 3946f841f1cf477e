"""Time that the check of a container adds to the decoding of a request.

    python -m benchmarks.container_cost

Times `speakerlens.containers.checked` and the decoding of 3 s files of several forms, in turns with libsndfile on the
bytes as they are. Reports medians in microseconds.
"""

import argparse
import datetime
import io
import json
import os
import platform
import statistics
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from speakerlens.containers import checked
from speakerlens.serving.pipeline.decode import DurationLimit, EncodedAudio, decode

SECONDS, RATE = 3, 16_000
TIMES = 200
FORMS = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/container_cost.json"))
    arguments = parser.parse_args()
    medians = {name: measured(data) for name, data in files().items()}
    for name, figures in medians.items():
        print(f"{name:16}", ", ".join(f"{part} {value:.1f} us" for part, value in figures.items()))
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "seconds_of_audio": SECONDS,
        "median_microseconds": medians,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def files() -> dict[str, bytes]:
    """Return files of several forms; the WAV also with metadata, as ffmpeg writes it."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE)
    made = {}
    for kind, subtype in FORMS:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format=kind, subtype=subtype)
        made[kind] = buffer.getvalue()
    tags = struct.pack("<4sI4s4sI14s", b"LIST", 26, b"INFO", b"ISFT", 14, b"Lavf60.16.100")
    made["WAV with LIST"] = made["WAV"][:36] + tags + made["WAV"][36:]
    return made


def measured(data: bytes) -> dict[str, float]:
    """Return median times in microseconds of a file's check and of its decoding."""
    parts: dict[str, Callable[[], object]] = {
        "check": lambda: checked(data),
        "libsndfile, bytes": lambda: soundfile.read(io.BytesIO(data), dtype="float32"),
        "libsndfile, checked": lambda: soundfile.read(checked(data), dtype="float32"),
        "decode": lambda: decode(EncodedAudio(data), DurationLimit(60)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(TIMES):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(values) * 1e6, 1) for name, values in times.items()}


if __name__ == "__main__":
    main()
