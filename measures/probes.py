"""A bundle's sealed probe set: utterances of known speakers, alone and under interference, with the right answers.

What is heard is made from its parts when it is asked for, by the formula of the training side's evaluation: the speech
is that of the bundle's utterances, the interference lies beside it alone, and a gain sets the ratio. So one file of
interference serves every ratio. Files are read whole, once, and are checked before anything is made of them; nothing is
unpickled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
MAX_SECONDS = 3.0  # what a server hears at once, unless told otherwise
CLEAN, RESAMPLED = "clean", "resampled"
# Squares much smaller than the square of this vanish in float32: such a signal counts as silent.
SILENT_NORM = 1e-10
# A name that is a folder of its own, of no other place.
_FOLDER = re.compile(r"[a-z][a-z+-]*")


class ProbeError(ValueError):
    """A probe set that does not hold: one sentence that says which file, and why."""


class Condition(NamedTuple):
    """What a probe is heard under.

    Attributes:
        interference: `clean`, `resampled`, or a kind of interference.
        snr_db: ratio of speech to interference in decibels, as the kind has it; None without interference.
    """

    interference: str
    snr_db: float | None

    @property
    def mixed(self) -> bool:
        """Whether there is interference in it."""
        return self.snr_db is not None

    @property
    def snr(self) -> str:
        """The ratio as labels have it: `10`, or nothing."""
        return "" if self.snr_db is None else f"{self.snr_db:g}"

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.interference} {self.snr} dB" if self.mixed else self.interference


@dataclass(frozen=True)
class Layer:
    """One utterance's interference of one kind: a file with its waveform, and int8 [mel, frames].

    `levels` says how far the speech stands above the interference in each bin, in decibels rounded down, at a ratio
    of 0 dB: at a ratio of whole decibels s, the interference is louder exactly where levels + s < 0.
    """

    sound: bytes
    levels: NDArray[np.int8]


@dataclass(frozen=True)
class Utterance:
    """One utterance: who speaks, its file, the same at another rate as a file, and its interference by kind."""

    speaker: str
    sound: bytes
    resampled: bytes
    layers: Mapping[str, Layer]


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """The probes of one bundle.

    Attributes:
        conditions: in which every utterance is heard.
        utterances: of known speakers.
    """

    conditions: tuple[Condition, ...]
    utterances: tuple[Utterance, ...]

    @classmethod
    def read(cls, folder: Path, manifest: Mapping[str, Any]) -> Self | None:
        """Read and check the probe set of a bundle.

        Args:
            folder: the bundle.
            manifest: its `bundle.json`, which fits the schema.

        Returns:
            None where the bundle has no probes.

        Raises:
            ProbeError: a file is missing, or is not what it should be.
        """
        entry = manifest["probes"]
        if entry is None:
            return None
        _check_names(entry, manifest["speakers"])
        read = [_read_utterance(folder, manifest, number) for number in range(len(entry["utterances"]))]
        return cls(conditions(entry["interference"], entry["snrs_db"]), tuple(read))

    def mixture(self, index: int, condition: Condition) -> NDArray[np.float32]:
        """What the model is to hear, [samples] at 16 kHz; `resampled` is heard as the file that `encoded` gives.

        The mixture of `training.data.mixing`: interference is scaled so that 10 log10 of the ratio of the energies is
        the condition's, and a sum that would leave [-1, 1] is scaled down whole.
        """
        utterance = self.utterances[index]
        speech = read_speech(utterance.sound)
        if not condition.mixed:
            return speech
        return mix(speech, _samples(utterance.layers[condition.interference].sound), float(condition.snr_db or 0.0))

    def encoded(self, index: int) -> bytes:
        """The clean utterance as an audio file of another rate."""
        return self.utterances[index].resampled

    def dominated(self, index: int, condition: Condition) -> NDArray[np.bool_] | None:
        """Where the interference is louder than the speech, [mel, frames]; None where there is none."""
        if condition.snr_db is None:
            return None
        levels = self.utterances[index].layers[condition.interference].levels
        found: NDArray[np.bool_] = levels.astype(np.float32) + np.float32(condition.snr_db) < 0
        return found


def conditions(interference: Sequence[str], snrs_db: Sequence[float]) -> tuple[Condition, ...]:
    """The conditions of a probe set with these kinds of interference and ratios."""
    mixed = (Condition(kind, float(snr_db)) for kind in interference for snr_db in snrs_db)
    return (Condition(CLEAN, None), Condition(RESAMPLED, None), *mixed)


def files(entry: Mapping[str, Any]) -> list[str]:
    """The files that a probe set is read from, by their path in the bundle; `entry` is `probes` of `bundle.json`."""
    named = [each["file"] for each in entry["utterances"]]
    for number in range(len(named)):
        named.append(_path(entry, RESAMPLED, number, "flac"))
        named += [_path(entry, kind, number, ending) for kind in entry["interference"] for ending in ("flac", "npy")]
    return named


def mix(speech: NDArray[np.float32], interference: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Mix speech [n] with interference [n] at any level; where either is silent, the speech stays alone."""
    loudness, unwanted = np.linalg.norm(speech), np.linalg.norm(interference)
    audible = loudness > SILENT_NORM and unwanted > SILENT_NORM
    gain = loudness / unwanted * np.float32(10.0) ** np.float32(-snr_db / 20.0) if audible else np.float32(0.0)
    audio: NDArray[np.float32] = speech + interference * np.float32(gain)
    peak = np.abs(audio).max(initial=0.0)
    return audio * np.float32((1.0 - 1e-6) / peak) if peak > 1.0 else audio


def read_speech(sound: bytes) -> NDArray[np.float32]:
    """The speech of an utterance's file: its beginning, without its constant offset, [samples] at 16 kHz."""
    samples = _samples(sound, round(MAX_SECONDS * RATE))
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if len(samples) else samples


def _samples(sound: bytes, most: int = -1) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = soundfile.read(io.BytesIO(sound), frames=most, dtype="float32")[0]
    return samples


def _path(entry: Mapping[str, Any], kind: str, number: int, ending: str) -> str:
    return f"{entry['folder']}/{kind}/{number:02d}.{ending}"


def _check_names(entry: Mapping[str, Any], speakers: Sequence[str]) -> None:
    for kind in entry["interference"]:
        if not _FOLDER.fullmatch(kind) or kind in (CLEAN, RESAMPLED):
            raise ProbeError(f"probes: {kind!r} is no kind of interference")
    for each in entry["utterances"]:
        if each["speaker"] not in speakers:
            raise ProbeError(f"probes: {each['file']} is of {each['speaker']!r}, who is not among the speakers")


def _read_utterance(folder: Path, manifest: Mapping[str, Any], number: int) -> Utterance:
    entry, front_end = manifest["probes"], manifest["front_end"]
    named = entry["utterances"][number]
    sound = _read(folder, named["file"])
    _check_sound(named["file"], sound, RATE)
    samples = len(read_speech(sound))
    if samples < manifest["min_samples"]:
        raise ProbeError(
            f"{named['file']} has {samples} samples, the shortest that is answered {manifest['min_samples']}"
        )
    frames = 1 + (samples - front_end["frame_length"]) // front_end["frame_shift"]
    resampled = _path(entry, RESAMPLED, number, "flac")
    again = _read(folder, resampled)
    _check_sound(resampled, again, entry["resampled_rate"], round(samples * entry["resampled_rate"] / RATE))
    layers = {}
    for kind in entry["interference"]:
        path, levels = (_path(entry, kind, number, ending) for ending in ("flac", "npy"))
        alone = _read(folder, path)
        _check_sound(path, alone, RATE, samples)
        layers[kind] = Layer(alone, _read_levels(levels, _read(folder, levels), (front_end["mel_bins"], frames)))
    return Utterance(named["speaker"], sound, again, layers)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ProbeError(f"{name} cannot be read: {error.strerror}") from error


def _check_sound(name: str, sound: bytes, rate: int, samples: int | None = None) -> None:
    """Whether a file is mono audio of this rate, and of so many samples, whatever its header says of them."""
    most = round(MAX_SECONDS * rate) if samples is None else samples
    try:
        with soundfile.SoundFile(io.BytesIO(sound)) as file:
            form = (file.samplerate, file.channels)
            held = file.read(most + 1, dtype="float32") if form == (rate, 1) else np.empty(0, np.float32)
    except soundfile.LibsndfileError as error:
        raise ProbeError(f"{name} cannot be read as audio: {error.error_string}") from error
    if form != (rate, 1):
        raise ProbeError(f"{name} has {form[1]} channels at {form[0]} Hz, not one at {rate} Hz")
    if samples is not None and len(held) != samples:
        raise ProbeError(f"{name} does not hold the {samples} samples of its utterance")
    if not np.isfinite(held).all():
        raise ProbeError(f"{name} holds samples that are NaN or infinite")


def _read_levels(name: str, content: bytes, shape: tuple[int, int]) -> NDArray[np.int8]:
    """The array of a file of NumPy's format: by its header, and without unpickling anything."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ProbeError(f"{name} cannot be read as an array: {error}") from error
    data = content[file.tell() :]
    if (version, header) != ((1, 0), (shape, False, np.dtype(np.int8))) or len(data) != shape[0] * shape[1]:
        raise ProbeError(f"{name} is not an array of {shape[0]} x {shape[1]} bytes")
    return np.frombuffer(data, np.int8).reshape(shape)
