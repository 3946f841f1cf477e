"""Utterances to look at and listen to: the sound, the interference, and the maps of every variant side by side."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.audio import write_audio
from speakerlens.training.data.manifest import Clip
from speakerlens.training.evaluation.comparison.figures import saliency_figure
from speakerlens.training.evaluation.maps.example import Example, explain
from speakerlens.training.evaluation.maps.probes import choose_probes
from speakerlens.training.files import make_folder
from speakerlens.training.study.plan import Plan
from speakerlens.training.study.setting import Setting

EXAMPLES = "examples"

LONGEST_SECONDS = 10.0
"""Longer utterances are passed over where there are shorter ones: their maps would be too wide to look at."""

RULE = (
    "Chosen by rule: the conditions in which the deletion index is measured, one after "
    "the other, each with the next of the utterances whose maps are measured (the first of each speaker in turn), "
    f"those over {LONGEST_SECONDS:g} s passed over; the networks of the first seed."
)


@dataclass(frozen=True)
class Shown:
    """One example: what is known of it, and the files that show it."""

    example: Example
    picture: Path
    speech: Path
    mixture: Path


def show_examples(plan: Plan, setting: Setting, device: torch.device) -> tuple[Shown, ...]:
    """Explain an utterance in each probed condition, and write its picture and its sounds under OUT/examples."""
    networks = {run.variant: load_run(run.folder, device).network for run in plan.runs if run.seed == plan.seeds[0]}
    clips = _clips(plan)
    folder = plan.out / EXAMPLES
    make_folder(folder)
    shown = []
    for number, condition in enumerate(setting.probed):
        clip = clips[number % len(clips)]
        example = explain(networks, plan.corpus, plan.corpus.speakers, clip, condition)
        stem = folder / f"{number + 1:02}-{condition.kind}-{condition.snr_db:g}dB"
        files = Shown(
            example, *(stem.with_name(f"{stem.name}{end}") for end in (".webp", "-speech.flac", "-mixture.flac"))
        )
        saliency_figure(example, files.picture)
        for path, samples in (files.speech, example.speech), (files.mixture, example.mixture):
            write_audio(path, samples / max(1.0, _peak(example)))
        shown.append(files)
    return tuple(shown)


def _clips(plan: Plan) -> tuple[Clip, ...]:
    probes = choose_probes(plan.corpus, plan.corpus.speakers).clips
    return tuple(clip for clip in probes if clip.duration <= LONGEST_SECONDS) or probes


def _peak(example: Example) -> float:
    """Loudest sample of an example's two sounds, which are scaled alike."""
    return float(max(np.abs(example.speech).max(), np.abs(example.mixture).max()))
