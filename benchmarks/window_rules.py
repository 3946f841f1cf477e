"""Rules that cut audio into windows: what they cost by the audio's length, and how often they name the speaker.

    python -m benchmarks.window_rules build/demo/bundles build/demo/corpus --out RESULT.json

For audio of a few lengths, test utterances of a speaker in a row, with noise of the test split: the speaker with the
highest mean logit over the windows. The cost is the audio of all windows, in seconds, which is what a graph takes.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import soundfile
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.serving.models.reader import read_bundle

RATE = 16_000
WINDOW, HOP, GRID, SHORTEST = 3.0, 1.44, 0.08, 0.5
EXPONENT = 1.9  # 7 % more audio costs 13.7 % more
Windows = list[tuple[float, float]]


def served(seconds: float) -> Windows:
    """Return the windows of the server, (start, end) in seconds: 3 s every 1.44 s, the last ends with the audio."""
    count = 1 + max(0, math.ceil((seconds - WINDOW) / HOP - 1e-9))
    starts = [index * HOP for index in range(count - 1)] + [max(0.0, math.ceil((seconds - WINDOW) / GRID) * GRID)]
    return [(start, min(start + WINDOW, seconds)) for start in starts]


def short_tail(seconds: float) -> Windows:
    """Return the same, but the last window begins one hop after the one before."""
    windows = served(seconds)
    return [*windows[:-1], ((len(windows) - 1) * HOP, seconds)]


def smooth(seconds: float) -> Windows:
    """Return windows of one length, of which the whole grows with the audio by a power, up to that of the server."""
    if seconds <= WINDOW:
        return [(0.0, seconds)]
    whole = min(WINDOW * (seconds / WINDOW) ** EXPONENT, WINDOW / HOP * seconds)
    count = max(2, math.ceil(whole / WINDOW - 1e-9))
    length = min(max(whole, seconds) / count, WINDOW)
    hop = (seconds - length) / (count - 1)
    return [(index * hop, index * hop + length) for index in range(count)]


def whole(seconds: float) -> Windows:
    """Return a single window."""
    return [(0.0, seconds)]


RULES: dict[str, Callable[[float], Windows]] = {
    "served": served,
    "short tail": short_tail,
    "smooth": smooth,
    "whole": whole,
}


def recordings(corpus: Path, speakers: Sequence[str], seconds: float, snr_db: float, draw: int) -> Any:
    """Yield the label of each speaker and float32 samples of test utterances in a row, with noise of the test split."""
    rows = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text("utf-8").splitlines()]
    test = [row for row in rows if row.get("split") == "test"]
    noises = [row for row in test if row["kind"] == "noise"]
    rng = np.random.default_rng(draw)
    for label, speaker in enumerate(speakers):
        clips = [row for row in test if row["kind"] == "utterance" and row["speaker"] == speaker]
        order = rng.permutation(len(clips))
        speech = np.concatenate([read(corpus, clips[index]) for index in order])[: int(seconds * RATE)]
        noise = np.resize(read(corpus, noises[rng.integers(len(noises))]), len(speech))
        gain = math.sqrt(float(np.mean(speech**2)) / max(float(np.mean(noise**2)), 1e-12) / 10 ** (snr_db / 10))
        mixed = speech + np.float32(gain) * noise
        yield label, (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def read(corpus: Path, row: Any) -> NDArray[np.float32]:
    """Return the samples of a row of the manifest, float32 [n]."""
    start, frames = round(row["start"] * RATE), round(row["duration"] * RATE)
    samples: NDArray[np.float32] = soundfile.read(corpus / row["path"], frames, start, dtype="float32")[0]
    return samples


def main() -> None:
    """Print the costs, then a line for each length; write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--variant", default="act-da")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.2, 3.6, 4.4, 6.0])
    parser.add_argument("--snr-db", type=float, default=0.0)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bundle = read_bundle(next(arguments.bundles.glob(f"{arguments.variant}/*")))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(bundle.folder / "predict.onnx"), options, providers=["CPUExecutionProvider"])

    def logits(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = {"audio": samples[None], "lengths": np.array([len(samples)], np.int64)}
        found: NDArray[np.float32] = session.run(["logits"], inputs)[0][0]
        return found

    figures: dict[str, Any] = {"steps": {}, "recordings": {}}
    grid = [round(SHORTEST + 0.01 * index, 2) for index in range(1150)]
    for name, rule in RULES.items():
        costs = {each: sum(end - start for start, end in rule(each)) for each in grid}
        most = max(
            costs[each * 107 // 100 / 100] / costs[each / 100] for each in range(50, 1100) if each * 107 % 100 == 0
        )
        figures["steps"][name] = round(most, 3)
        print(f"{name:12} 7 % more audio costs at most {100 * most - 100:.0f} % more", flush=True)
    for seconds in arguments.seconds:
        right = dict.fromkeys(RULES, 0)
        count = 0
        for draw in range(arguments.draws):
            for label, samples in recordings(arguments.corpus, bundle.speakers, seconds, arguments.snr_db, draw):
                count += 1
                for name, rule in RULES.items():
                    parts = [samples[round(a * RATE) : round(b * RATE)] for a, b in rule(len(samples) / RATE)]
                    right[name] += int(np.mean([logits(each) for each in parts], axis=0).argmax()) == label
        found = {
            name: {
                "windows": len(rule(seconds)),
                "cost_s": round(sum(end - start for start, end in rule(seconds)), 2),
                "top1_percent": round(100 * right[name] / count, 1),
            }
            for name, rule in RULES.items()
        }
        figures["recordings"][f"{seconds:g} s"] = {"count": count, **found}
        print(f"{seconds:g} s, {count} recordings", found, flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({**environment(), **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
