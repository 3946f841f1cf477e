"""Cost of decoding in a process of its own, beside libsndfile in this process without a check.

    python -m benchmarks.container_cost

Times 3 s files of several forms, in turns: the check of the container, the whole decoding of a request, and what it
would take with libsndfile on the bytes as they are. Then the time until another worker is there after one was ended.
Reports medians in microseconds.
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

from speakerlens.containers import layout
from speakerlens.decoder_pool import shared_pool
from speakerlens.decoding import open_audio
from speakerlens.serving.pipeline.decode import EncodedAudio, decode
from speakerlens.serving.pipeline.samples import DurationLimit, Intake

SECONDS, RATE = 3, 16_000
TIMES = 200
FORMS = (("WAV", "PCM_16"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/container_cost.json"))
    arguments = parser.parse_args()
    medians = {name: measured(data) for name, data in files().items()}
    for name, figures in medians.items():
        print(f"{name:14}", ", ".join(f"{part} {value:.0f} us" for part, value in figures.items()))
    restart = restarted()
    print(f"another worker after {restart:.0f} us")
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "seconds_of_audio": SECONDS,
        "median_microseconds": medians,
        "another_worker_microseconds": restart,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def files() -> dict[str, bytes]:
    """Return files of several forms; the WAV also with metadata, as ffmpeg writes it."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(SECONDS * RATE)
    made = {}
    for kind, subtype in FORMS:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format=kind, subtype=subtype)
        made[kind if subtype != "ULAW" else "WAV, mu-law"] = buffer.getvalue()
    tags = struct.pack("<4sI4s4sI14s", b"LIST", 26, b"INFO", b"ISFT", 14, b"Lavf60.16.100")
    made["WAV with LIST"] = made["WAV"][:36] + tags + made["WAV"][36:]
    return made


def in_this_process(data: bytes) -> None:
    """Decode as a request is decoded, by libsndfile on the bytes as they are."""
    intake = Intake("audio", RATE, 1, DurationLimit(60))
    intake.feed(soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0])
    intake.finish()


def measured(data: bytes) -> dict[str, float]:
    """Return median times in microseconds of a file's check and of its decoding."""
    parts: dict[str, Callable[[], object]] = {
        "check": lambda: layout(memoryview(data)),
        "request, libsndfile in this process": lambda: in_this_process(data),
        "request": lambda: decode(EncodedAudio(data), DurationLimit(60)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(TIMES):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(values) * 1e6, 1) for name, values in times.items()}


def restarted() -> float:
    """Return the median time in microseconds to end a worker and have another decode."""
    data = files()["FLAC"]
    times = []
    for _ in range(TIMES // 10):
        worker = shared_pool().acquire()
        start = time.perf_counter()
        shared_pool().stop(worker, "time")
        with open_audio(data, expected=SECONDS * RATE):
            times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6, 1)


if __name__ == "__main__":
    main()
