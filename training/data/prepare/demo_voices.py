"""The demo's speakers: espeak-ng voices, checked to differ, saying sentences into files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.prepare.espeak import Espeak, Voice, espeak_files
from speakerlens.training.data.prepare.processes import in_processes

SPEAKERS: tuple[Voice, ...] = (
    Voice("en-us", "f1", 45, 55, 165),
    Voice("en", "m1", 40, 45, 170),
    Voice("en-gb-scotland", "Alicia", 40, 60, 175),
    Voice("en-us", "m3", 55, 50, 160),
    Voice("en-029", "Andrea", 45, 45, 145),
    Voice("en-gb-x-rp", "Alex", 40, 50, 165),
    Voice("en-us", "Annie", 55, 40, 160),
    Voice("en-gb-x-gbclan", "Andy", 50, 65, 180),
    Voice("en", "anika", 45, 50, 150),
    Voice("en-us-nyc", "Denis", 60, 45, 165),
    Voice("en-gb-x-rp", "f3", 50, 55, 175),
    Voice("en-gb-scotland", "Gene", 45, 40, 160),
    Voice("en-us", "belinda", 40, 45, 165),
    Voice("en-029", "Jacky", 65, 55, 175),
    Voice("en-gb-x-gbcwmd", "aunty", 55, 50, 155),
    Voice("en-us", "Marco", 55, 60, 210),
    Voice("en-us-nyc", "f2", 60, 45, 180),
    Voice("en", "Nguyen", 60, 40, 165),
    Voice("en-us", "grandma", 45, 65, 150),
    Voice("en-gb-x-gbcwmd", "boris", 35, 40, 170),
    Voice("en-gb-x-gbclan", "steph", 55, 50, 170),
    Voice("en-us", "ed", 50, 55, 180),
    Voice("en", "shelby", 50, 60, 165),
    Voice("en-gb-scotland", "gustave", 45, 50, 165),
    Voice("en-us-nyc", "zac", 30, 40, 185),
    Voice("en-us", "iven", 50, 45, 160),
    Voice("en-029", "f5", 40, 60, 170),
    Voice("en-gb-x-rp", "kaukovalta", 55, 50, 165),
    Voice("en-us", "rob", 35, 55, 170),
    Voice("en-gb-x-gbclan", "travis", 60, 45, 175),
    Voice("en-us-nyc", "victor", 40, 60, 160),
    Voice("en", "antonio", 55, 45, 150),
    Voice("en-029", "m6", 30, 50, 165),
    Voice("en-gb-x-rp", "m5", 65, 40, 170),
    Voice("en-gb-scotland", "m8", 55, 60, 155),
    Voice("en-gb-x-gbcwmd", "m2", 60, 55, 175),
)
"""Who can be a speaker, in the order in which they are taken."""

OUTSIDERS: tuple[Voice, ...] = (
    Voice("en-us", "f4", 45, 50, 170),
    Voice("en", "adam", 50, 50, 165),
    Voice("en-gb-scotland", "linda", 50, 55, 170),
    Voice("en-us-nyc", "Lee", 45, 50, 160),
    Voice("en-029", "paul", 55, 50, 175),
    Voice("en-us", "Diogo", 70, 55, 165),
    Voice("en-gb-x-rp", "david", 55, 45, 170),
    Voice("en", "sandro", 45, 60, 165),
    Voice("en-us", "Storm", 60, 45, 160),
    Voice("en-gb-x-gbclan", "Reed", 60, 50, 170),
    Voice("en-gb-x-gbcwmd", "m7", 50, 55, 175),
    Voice("en-us", "marcelo", 50, 45, 165),
    Voice("en-us-nyc", "klatt4", 45, 50, 170),
    Voice("en-gb-scotland", "m4", 60, 60, 165),
)
"""Who only ever talks in the background."""

PROBE = "The grey heron waited beside a narrow river for most of the morning."

_SAME = 0.5
"""Distance of waveforms up to which two variants count as one. Measured over all of espeak-ng's: those that differ in
loudness alone lie at 0.03, in voicing alone at up to 0.3, in pitch or formants mostly at 1.4, as unrelated ones do."""


@dataclass(frozen=True)
class Line:
    """Something to say: where to, what, how (the voice as varied for this utterance) and at which level.

    Attributes:
        level_db: root mean square of the utterance over full scale, in decibels.
        floor_db: the recording's white noise, in decibels below the speech.
        seed: of that noise.
    """

    path: Path
    text: str
    voice: Voice
    level_db: float
    floor_db: float
    seed: int


def vary(voice: Voice, path: Path, text: str, rng: np.random.Generator) -> Line:
    """Let a voice say a sentence with a little variation in pitch, melody, tempo, level and noise floor."""
    varied = replace(
        voice,
        pitch=int(np.clip(voice.pitch + rng.integers(-6, 7), 0, 99)),
        range=int(np.clip(voice.range + rng.integers(-12, 13), 0, 99)),
        rate=round(voice.rate * float(rng.uniform(0.93, 1.07))),
    )
    level, floor = float(rng.uniform(-28, -18)), float(rng.uniform(50, 65))
    return Line(path, text, varied, level, floor, int(rng.integers(2**31)))


def distinct_voices(candidates: Iterable[Voice]) -> tuple[list[Voice], list[Voice]]:
    """Part the voices that sound like nobody before them from those that do.

    Each variant says the same sentence with the same accent, pitch and rate, so that only the variant can tell them
    apart; the voice without any variant is the first of all, for that is what espeak-ng silently gives for an
    unknown variant.

    Returns:
        The distinct voices and the others, both in the order given.
    """
    voices = list(candidates)
    neutral = [Voice("en-us", ""), *(Voice("en-us", voice.variant) for voice in voices)]
    with espeak_files() as (library, data):
        jobs = [(library, data, voice) for voice in neutral]
        known, *waveforms = in_processes(_probe, jobs, fresh=True)
    kept = [known]
    distinct: list[Voice] = []
    others: list[Voice] = []
    for voice, waveform in zip(voices, waveforms, strict=True):
        if all(waveform_distance(waveform, other) > _SAME for other in kept):
            kept.append(waveform)
            distinct.append(voice)
        else:
            others.append(voice)
    return distinct, others


def waveform_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Give the distance of two waveforms at equal energy: 0 for the same, about 1.4 for unrelated ones.

    It is 2, the most there can be, for different lengths: one sentence that takes two voices different times.
    """
    if len(first) != len(second):
        return 2.0
    return float(np.linalg.norm(first / np.linalg.norm(first) - second / np.linalg.norm(second)))


def speak(scripts: Iterable[list[Line]]) -> Iterator[list[float]]:
    """Synthesise scripts, each the lines of one voice, into their files.

    Yields:
        The seconds of each line of a script, scripts in the order given.
    """
    with espeak_files() as (library, data):
        # Only in a process of its own does espeak-ng repeat itself.
        yield from in_processes(_speak, [(library, data, script) for script in scripts], fresh=True)


def _probe(job: tuple[Path, Path, Voice]) -> NDArray[np.float32]:
    library, data, voice = job
    return Espeak(library, data).say(voice, PROBE)


def _speak(job: tuple[Path, Path, list[Line]]) -> list[float]:
    library, data, script = job
    espeak = Espeak(library, data)
    seconds = []
    for line in script:
        samples = _record(espeak.say(line.voice, line.text), line)
        write_audio(line.path, samples)
        seconds.append(len(samples) / SAMPLE_RATE)
    return seconds


def _record(speech: NDArray[np.float32], line: Line) -> NDArray[np.float32]:
    """Bring speech to its level over a faint noise, without which its pauses would be digital silence."""
    speech = speech / np.sqrt(np.mean(np.square(speech)))
    noise = np.random.default_rng(line.seed).standard_normal(len(speech), dtype=np.float32)
    recorded = (speech + 10 ** (-line.floor_db / 20) * noise) * 10 ** (line.level_db / 20)
    return np.asarray(recorded * min(1.0, 0.95 / np.abs(recorded).max()), dtype=np.float32)
