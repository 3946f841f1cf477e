"""What a telephone costs: top-1 accuracy on test utterances as they are, and through codecs and narrow bands.

    python -m benchmarks.telephony RUN

Every test utterance is scaled to the active level of telephone speech, -26 dB below full scale (ITU-T P.56), passed
through each channel, and named by the run's network from all of its samples.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.config import Band, Codec
from speakerlens.training.data.audio import read_sound
from speakerlens.training.data.manifest import load_corpus, spread
from speakerlens.training.data.perturbation import limit_band, round_trip
from speakerlens.training.evaluation.intervals import wilson

LEVEL_DB = -26.0

_Waveform = NDArray[np.float32]


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--utterances", type=int, default=1000, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(load_run(arguments.run), arguments.utterances)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(run: Run, most: int) -> dict[str, dict[str, float]]:
    """Print and return for each channel the accuracy in percent, its 95 % interval, and the points lost."""
    clips = spread(load_corpus(run.corpus).utterances("test"), most)
    speech = [at_level(read_sound(clip.path, clip.start, clip.duration)) for clip in clips]
    labels = [run.speakers.index(clip.speaker or "") for clip in clips]
    channels: dict[str, Callable[[_Waveform], _Waveform]] = {"none": lambda samples: samples}
    channels |= {codec: lambda samples, codec=codec: round_trip(samples, codec) for codec in get_args(Codec)}
    channels |= {band: lambda samples, band=band: limit_band(samples, band) for band in get_args(Band)}
    figures: dict[str, dict[str, float]] = {}
    for name, channel in channels.items():
        right = sum(named(run, channel(samples)) == label for samples, label in zip(speech, labels, strict=True))
        low, high = wilson(right, len(labels))
        accuracy = 100 * right / len(labels)
        lost = figures["none"]["top1"] - accuracy if figures else 0.0
        print(f"{name:10} {accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}], {lost:+.1f} points lost", flush=True)
        figures[name] = {"top1": accuracy, "low": 100 * low, "high": 100 * high, "points_lost": lost}
    return figures


def named(run: Run, samples: _Waveform) -> int:
    """Return the label that the network gives to samples [N]."""
    with torch.inference_mode():
        return int(run.network(torch.from_numpy(samples)[None])[0].argmax())


def at_level(samples: _Waveform) -> _Waveform:
    """Return samples [N] scaled to the level of telephone speech."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return np.asarray(np.clip(samples * 10 ** (LEVEL_DB / 20) / max(power, 1e-12) ** 0.5, -1, 1), dtype=np.float32)


if __name__ == "__main__":
    main()
