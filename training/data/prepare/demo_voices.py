"""The demo's speakers: espeak-ng voices, checked to differ, saying sentences into files.

espeak-ng is called through the C library of the `espeakng-loader` wheel. The library keeps its state in globals that
outlive a call, a voice and even a new initialisation: the same sentence said twice differs a little. Waveforms repeat
only from one `Espeak` in a fresh process that makes the same calls in the same order.
"""

import ctypes
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.prepare.pieces import in_processes
from speakerlens.training.errors import UserError

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_CHARS_UTF8 = 1
_BUFFER_MS = 200
_RATE, _PITCH, _RANGE = 1, 3, 4

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """A voice of espeak-ng.

    Attributes:
        accent: espeak-ng language, such as "en-us".
        variant: espeak-ng voice variant, which sets formants and timbre; "" for none.
        pitch: 0 to 99, within the variant's own pitches.
        range: 0 to 99, how much the pitch moves.
        rate: words per minute.
    """

    accent: str
    variant: str
    pitch: int = 50
    range: int = 50
    rate: int = 170


@contextmanager
def espeak_files() -> Iterator[tuple[Path, Path]]:
    """Yield the paths of espeak-ng's library and of its data, valid within the context.

    The data path is a short link, as the library truncates paths of more than 160 characters.

    Raises:
        UserError: the `espeakng-loader` wheel is not installed.
    """
    try:
        import espeakng_loader  # noqa: PLC0415  optional, and only needed here
    except ImportError as error:
        raise UserError(
            "the demo corpus needs the espeak-ng voices: install the extra `demo` (pip install 'speakerlens[demo]')"
        ) from error
    with tempfile.TemporaryDirectory(prefix="espeak") as folder:
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
        yield Path(espeakng_loader.get_library_path()), link


class Espeak:
    """The synthesiser: one per process, used from one thread.

    Raises:
        UserError: the library or its data cannot be loaded.
    """

    def __init__(self, library: Path, data: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise UserError(f"{library}: the espeak-ng library cannot be loaded ({error})") from error
        self._rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, _BUFFER_MS, str(data).encode(), _DO_NOT_EXIT)
        if self._rate <= 0:
            raise UserError(f"{data}: espeak-ng does not start with the voices there")
        self._library.espeak_ng_SetRandSeed(1)  # otherwise the clock seeds the noise of breathy voices
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = _Callback(self._receive)  # the library holds no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, voice: Voice, text: str) -> NDArray[np.float32]:
        """Return text as speech: 16 kHz samples [N], float32 in [-1, 1].

        Raises:
            UserError: the accent does not exist. espeak-ng ignores an unknown variant.
        """
        name = f"{voice.accent}+{voice.variant}" if voice.variant else voice.accent
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {name}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        content = text.encode()
        failed = self._library.espeak_Synth(
            content, ctypes.c_size_t(len(content) + 1), 0, 1, 0, _CHARS_UTF8, None, None
        )
        if failed or not self._chunks:
            raise UserError(f"espeak-ng gave no sound for {text!r} in the voice {name}")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        return np.asarray(soxr.resample(samples, self._rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        """Store a chunk of the waveform; return 0, which asks the library for the next."""
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


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
"""Voices of the speakers, in the order in which they are used."""

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
    Voice("en-us", "Michael", 45, 50, 160),
    Voice("en", "Hugo", 50, 45, 170),
    Voice("en-029", "edward", 45, 50, 175),
    Voice("en-gb-x-rp", "pablo", 60, 45, 160),
    Voice("en-us-nyc", "john", 50, 55, 165),
    Voice("en-gb-x-gbclan", "quincy", 55, 50, 170),
    Voice("en-us", "robert", 45, 45, 165),
    Voice("en-gb-x-gbcwmd", "miguel", 60, 55, 160),
)
"""Voices of no speaker: interfering talkers, and out-of-set speakers for the threshold."""

PROBE = "The grey heron waited beside a narrow river for most of the morning."

_SAME = 0.5
"""Distance of waveforms up to which two variants count as the same voice. Measured over all variants of espeak-ng:
variants that differ only in loudness are 0.03 apart, only in voicing up to 0.3, in pitch or formants mostly 1.4."""


@dataclass(frozen=True)
class Line:
    """An utterance to synthesise into a file.

    Attributes:
        path: the file to write.
        text: the sentence.
        voice: as varied for this utterance.
        level_db: root mean square of the utterance, in dB relative to full scale.
        floor_db: level of the added white noise, in dB below the speech.
        seed: of that noise.
    """

    path: Path
    text: str
    voice: Voice
    level_db: float
    floor_db: float
    seed: int


def vary(voice: Voice, path: Path, text: str, rng: np.random.Generator) -> Line:
    """Return a sentence to say, with pitch, melody, tempo, level and noise floor varied a little."""
    varied = replace(
        voice,
        pitch=int(np.clip(voice.pitch + rng.integers(-6, 7), 0, 99)),
        range=int(np.clip(voice.range + rng.integers(-12, 13), 0, 99)),
        rate=round(voice.rate * float(rng.uniform(0.93, 1.07))),
    )
    level, floor = float(rng.uniform(-28, -18)), float(rng.uniform(50, 65))
    return Line(path, text, varied, level, floor, int(rng.integers(2**31)))


def distinct_voices(candidates: Iterable[Voice]) -> tuple[list[Voice], list[Voice]]:
    """Separate voices that differ from all earlier ones from those that do not.

    Every variant says the same sentence with the same accent, pitch and rate. The voice without a variant comes first,
    as espeak-ng uses it for every variant it does not know.

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
    """Return the L2 distance of two waveforms [N] scaled to unit energy: 0 if equal, about 1.4 if unrelated.

    Waveforms of different lengths have distance 2, the maximum: the voices differ in tempo.
    """
    if len(first) != len(second):
        return 2.0
    return float(np.linalg.norm(first / np.linalg.norm(first) - second / np.linalg.norm(second)))


def speak(scripts: Iterable[list[Line]]) -> Iterator[list[float]]:
    """Synthesise scripts, each the lines of one voice, into their files.

    Yields:
        For each script, in the order given, the seconds of its lines.
    """
    with espeak_files() as (library, data):
        # espeak-ng is reproducible only in a fresh process.
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
    """Scale speech [N] to its level and add faint noise, so that its pauses are not digital silence."""
    speech = speech / np.sqrt(np.mean(np.square(speech)))
    noise = np.random.default_rng(line.seed).standard_normal(len(speech), dtype=np.float32)
    recorded = (speech + 10 ** (-line.floor_db / 20) * noise) * 10 ** (line.level_db / 20)
    return np.asarray(recorded * min(1.0, 0.95 / np.abs(recorded).max()), dtype=np.float32)
