"""Timelines of conversations whose turns are known, by what a change of speaker costs.

    python -m benchmarks.turns build/mine/runs/da --temperature 2.4

Makes conversations of test utterances of the run's corpus: turns of 3 to 9 s by four speakers, clean, and in noise of
the test split. Their windows go through the network, and the timeline is made as the
server makes it. A cost of 0 is the timeline without smoothing: neighbouring windows of one speaker are joined. Reports
the number of segments and of true turns, the share of the time with the wrong speaker, and for the true changes the
distance to the nearest change in the timeline.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.measures.windows import Windowing
from speakerlens.serving.pipeline import timeline
from speakerlens.serving.pipeline.aggregate import softmax
from speakerlens.serving.pipeline.vad import holds_speech
from speakerlens.serving.pipeline.windows import WindowCutter
from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.model.network import SpeakerNetwork

COSTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0)
SHAPE = Windowing(3 * SAMPLE_RATE, 23_040, 1280)
NEAR_S = 1.0
STEP_S = 0.1


@dataclass(frozen=True)
class Conversation:
    """Samples, float32 [n], and the turns: seconds of begin and end, and the speaker's label."""

    samples: NDArray[np.float32]
    turns: Sequence[tuple[float, float, int]]


def conversation(corpus: Corpus, speakers: Sequence[str], turns: int, rng: np.random.Generator) -> Conversation:
    """Return a conversation of four speakers of the test split."""
    cast = rng.permutation(len(speakers))[:4]
    pieces: list[NDArray[np.float32]] = []
    truth: list[tuple[float, float, int]] = []
    at, before = 0, -1
    for _ in range(turns):
        label = int(rng.choice([each for each in cast if each != before]))
        before, begin, length = label, at, rng.uniform(3, 9) * SAMPLE_RATE
        clips = [clip for clip in corpus.utterances("test") if clip.speaker == speakers[label]]
        while at - begin < length:
            clip = clips[rng.integers(len(clips))]
            samples = read_audio(clip.path, clip.start, clip.duration)
            pieces.append(samples)
            at += len(samples)
        truth.append((begin / SAMPLE_RATE, at / SAMPLE_RATE, label))
    return Conversation(np.concatenate(pieces), truth)


def noisy(samples: NDArray[np.float32], corpus: Corpus, snr_db: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return samples [n] with noise of the test split all along."""
    clips = corpus.interference("noise", "test")
    noise = np.zeros(0, np.float32)
    while len(noise) < len(samples):
        clip = clips[rng.integers(len(clips))]
        noise = np.append(noise, read_audio(clip.path, clip.start, clip.duration))
    noise = noise[: len(samples)]
    gain = np.sqrt((samples**2).mean() / (noise**2).mean() / 10 ** (snr_db / 10))
    mixed = samples + gain * noise
    scaled: NDArray[np.float32] = (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)
    return scaled


def windows(network: SpeakerNetwork, samples: NDArray[np.float32]) -> list[tuple[int, int, NDArray[np.float32] | None]]:
    """Return begin, end and logits of each window, None without speech."""
    cutter, found = WindowCutter(SHAPE), []
    with torch.inference_mode():
        for window in (*cutter.feed(samples), *cutter.finish()):
            logits = None
            if holds_speech(window.samples):
                audio = torch.from_numpy(window.samples)[None]
                logits = network(audio, torch.tensor([audio.shape[1]]))[0][0].numpy()
            found.append((window.start, window.stop, logits))
    return found


def figures(
    made: Conversation, found: Sequence[tuple[int, int, NDArray[np.float32] | None]], temperature: float, cost: float
) -> dict[str, float]:
    """Return segments, share of the time with the wrong speaker, and distances of the changes in seconds."""
    line = timeline.Timeline()
    with mock.patch.object(timeline, "SWITCH_NATS", cost):
        for start, stop, logits in found:
            if logits is None:
                line.add_pause(start, stop)
            else:
                line.add(start, stop, softmax(logits / temperature), logits.astype(np.float64))
    turns = line.turns()
    times = np.arange(STEP_S / 2, made.turns[-1][1], STEP_S)
    truth = np.array([next(label for _, end, label in made.turns if time < end) for time in times])
    named = np.array([next((t.label for t in turns if t.start_s <= time < t.end_s), -1) for time in times])
    changes = np.array([one.end_s for one, other in itertools.pairwise(turns) if one.label != other.label] or [np.inf])
    distances = [float(np.abs(changes - end).min()) for _, end, _ in made.turns[:-1]]
    return {
        "segments": len(turns),
        "turns": len(made.turns),
        "wrong": float(((named != truth) & (named >= 0)).mean()),
        "unnamed": float((named < 0).mean()),
        "median_distance_s": float(np.median(distances)),
        "near": float(np.mean(np.array(distances) <= NEAR_S)),
    }


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--temperature", type=float, required=True, help="of the run's bundle")
    parser.add_argument("--conversations", type=int, default=4)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--snr-db", type=float, nargs="*", default=[10.0], help="of noise, beside clean speech")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/turns.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(arguments.run)
    corpus = load_corpus(run.corpus)
    rng = np.random.default_rng(0)
    results = []
    made = [conversation(corpus, run.speakers, arguments.turns, rng) for _ in range(arguments.conversations)]
    for snr_db in (None, *arguments.snr_db):
        outputs = []
        for each in made:
            samples = each.samples if snr_db is None else noisy(each.samples, corpus, snr_db, rng)
            outputs.append(windows(run.network, samples))
        for cost in COSTS:
            each_of = [
                figures(talk, found, arguments.temperature, cost) for talk, found in zip(made, outputs, strict=True)
            ]
            mean = {name: round(float(np.mean([one[name] for one in each_of])), 3) for name in each_of[0]}
            results.append({"snr_db": snr_db, "cost_nats": cost, **mean})
            print(results[-1])
    report = {"environment": environment(), "windows": sum(map(len, outputs)), "results": results}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
