"""A bundle's sealed probe set: utterances of known speakers, clean and under interference, with the correct answers.

Speech and interference are stored apart and mixed on demand, by the formula of the training side's evaluation, so one
file of interference serves every SNR. Files are read once, whole, and checked before use; nothing is unpickled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from speakerlens.decoding import AudioFileError, open_audio

RATE = 16_000
MAX_SECONDS = 3.0  # a server's window by default
_EXPECTED_FRAMES = round(MAX_SECONDS * RATE) + 1
CLEAN, RESAMPLED = "clean", "resampled"
# The square of a smaller norm vanishes in float32: such a signal counts as silent.
SILENT_NORM = 1e-10
# A plain folder name, without separators or dots.
_FOLDER = re.compile(r"[a-z][a-z+-]*")


class ProbeError(ValueError):
    """A probe set that cannot be used; one sentence that names the file and the reason."""


class Condition(NamedTuple):
    """What a probe's speech is combined with.

    Attributes:
        interference: `clean`, `resampled`, or a kind of interference.
        snr_db: ratio of speech to interference in decibels; None without interference.
    """

    interference: str
    snr_db: float | None

    @property
    def mixed(self) -> bool:
        """Whether it has interference."""
        return self.snr_db is not None

    @property
    def snr(self) -> str:
        """The ratio as in metric labels: `10`, or empty without interference."""
        return "" if self.snr_db is None else f"{self.snr_db:g}"

    def __str__(self) -> str:
        """Return the name used in messages."""
        return f"{self.interference} {self.snr} dB" if self.mixed else self.interference


@dataclass(frozen=True)
class Layer:
    """One utterance's interference of one kind.

    Attributes:
        sound: an audio file, the interference alone.
        levels: int8 [mel, frames], local SNR of each bin in decibels, rounded down, at an SNR of 0 dB: at an SNR of s
            whole decibels, the interference is louder exactly where levels + s < 0.
    """

    sound: bytes
    levels: NDArray[np.int8]


@dataclass(frozen=True)
class Utterance:
    """One utterance: its speaker, its audio file, the same at another rate, and its interference by kind."""

    speaker: str
    sound: bytes
    resampled: bytes
    layers: Mapping[str, Layer]


@dataclass(frozen=True, eq=False)
class Voices:
    """Enrolled speakers, each by the direction of the mean of some embeddings: names, and float32 [speakers, size]."""

    speakers: tuple[str, ...]
    directions: NDArray[np.float32]

    def nearest(self, embedding: NDArray[np.floating]) -> tuple[int, float]:
        """Return the index of the speaker with the greatest cosine to an embedding [size], and that cosine."""
        cosines = self.directions @ (embedding / max(float(np.linalg.norm(embedding)), 1e-12))
        best = int(cosines.argmax())
        return best, float(cosines[best])


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """The probes of one bundle.

    Attributes:
        conditions: applied to every utterance.
        utterances: of known speakers.
        voices: enrolled speakers, where the network has no classifier; None where it has one.
    """

    conditions: tuple[Condition, ...]
    utterances: tuple[Utterance, ...]
    voices: Voices | None = None

    @classmethod
    def read(cls, folder: Path, manifest: Mapping[str, Any]) -> Self | None:
        """Read and check the probe set of a bundle.

        Args:
            folder: the bundle.
            manifest: its `bundle.json`, which fits the schema.

        Returns:
            None if the bundle has no probes.

        Raises:
            ProbeError: a file is missing or does not fit the manifest.
        """
        entry = manifest["probes"]
        if entry is None:
            return None
        voices = _read_voices(folder, manifest)
        _check_names(entry, manifest["speakers"] if voices is None else voices.speakers)
        read = [_read_utterance(folder, manifest, number) for number in range(len(entry["utterances"]))]
        return cls(conditions(entry["interference"], entry["snrs_db"]), tuple(read), voices)

    def mixture(self, index: int, condition: Condition) -> NDArray[np.float32]:
        """Return the audio of a probe, float32 [samples] at 16 kHz; for `resampled`, use `encoded` instead.

        Mixed as in `training.data.mixing`: the interference is scaled to the condition's SNR (10 log10 of the ratio of
        energies), and a mixture that exceeds [-1, 1] is scaled down as a whole.
        """
        utterance = self.utterances[index]
        speech = read_speech(utterance.sound)
        if not condition.mixed:
            return speech
        return mix(speech, _samples(utterance.layers[condition.interference].sound), float(condition.snr_db or 0.0))

    def encoded(self, index: int) -> bytes:
        """Return the clean utterance as an audio file at another sample rate."""
        return self.utterances[index].resampled

    def dominated(self, index: int, condition: Condition) -> NDArray[np.bool_] | None:
        """Return where interference is louder than speech, bool [mel, frames]; None without interference."""
        if condition.snr_db is None:
            return None
        levels = self.utterances[index].layers[condition.interference].levels
        found: NDArray[np.bool_] = levels.astype(np.float32) + np.float32(condition.snr_db) < 0
        return found


def conditions(interference: Sequence[str], snrs_db: Sequence[float]) -> tuple[Condition, ...]:
    """Return the conditions of a probe set with these kinds of interference and SNRs."""
    mixed = (Condition(kind, float(snr_db)) for kind in interference for snr_db in snrs_db)
    return (Condition(CLEAN, None), Condition(RESAMPLED, None), *mixed)


def files(entry: Mapping[str, Any]) -> list[str]:
    """Return the paths, relative to the bundle, of a probe set's files; `entry` is `probes` of `bundle.json`."""
    named = [each["file"] for each in entry["utterances"]]
    for number in range(len(entry["utterances"])):
        named.append(_path(entry, RESAMPLED, number, "flac"))
        named += [_path(entry, kind, number, ending) for kind in entry["interference"] for ending in ("flac", "npy")]
    return [*named, entry["voices"]["file"]] if "voices" in entry else named


def mix(speech: NDArray[np.float32], interference: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Return float32 [n]: speech [n] plus interference [n] at an SNR; the speech alone if either is silent."""
    loudness, unwanted = np.linalg.norm(speech), np.linalg.norm(interference)
    audible = loudness > SILENT_NORM and unwanted > SILENT_NORM
    gain = loudness / unwanted * np.float32(10.0) ** np.float32(-snr_db / 20.0) if audible else np.float32(0.0)
    audio: NDArray[np.float32] = speech + interference * np.float32(gain)
    peak = np.abs(audio).max(initial=0.0)
    return audio * np.float32((1.0 - 1e-6) / peak) if peak > 1.0 else audio


def read_speech(sound: bytes) -> NDArray[np.float32]:
    """Return the start of an utterance's file without constant offset, float32 [samples] at 16 kHz, 3 s at most."""
    samples = _samples(sound, round(MAX_SECONDS * RATE))
    return samples - samples.mean(dtype=np.float64).astype(np.float32) if len(samples) else samples


def _samples(sound: bytes, most: int | None = None) -> NDArray[np.float32]:
    with open_audio(sound, expected=_EXPECTED_FRAMES) as file:
        return file.read(most)[:, 0]


def _path(entry: Mapping[str, Any], kind: str, number: int, ending: str) -> str:
    return f"{entry['folder']}/{kind}/{number:02d}.{ending}"


def _check_names(entry: Mapping[str, Any], speakers: Sequence[str]) -> None:
    for kind in entry["interference"]:
        if not _FOLDER.fullmatch(kind) or kind in (CLEAN, RESAMPLED):
            raise ProbeError(f"probes: {kind!r} is not a kind of interference")
    for each in entry["utterances"]:
        if each["speaker"] not in speakers:
            raise ProbeError(f"probes: {each['file']} is of {each['speaker']!r}, who is not among the speakers")


def _read_voices(folder: Path, manifest: Mapping[str, Any]) -> Voices | None:
    """Return the enrolled speakers of a bundle's probes; None if the network has a classifier instead."""
    entry = manifest["probes"].get("voices")
    if (entry is None) != bool(manifest["speakers"]):
        raise ProbeError("probes: enrolled voices are for networks without a classifier, which need them")
    if entry is None:
        return None
    name, speakers = entry["file"], tuple(entry["speakers"])
    shape = (len(speakers), manifest["network"]["embedding"])
    directions = _read_array(name, _read(folder, name), shape, np.dtype(np.float32))
    if not np.isfinite(directions).all():
        raise ProbeError(f"{name} holds values that are NaN or infinite")
    return Voices(speakers, directions)


def _read_utterance(folder: Path, manifest: Mapping[str, Any], number: int) -> Utterance:
    entry, front_end = manifest["probes"], manifest["front_end"]
    named = entry["utterances"][number]
    sound = _read(folder, named["file"])
    _check_sound(named["file"], sound, RATE)
    samples = len(read_speech(sound))
    if samples < manifest["min_samples"]:
        raise ProbeError(f"{named['file']} has {samples} samples, fewer than the minimum of {manifest['min_samples']}")
    frames = 1 + (samples - front_end["frame_length"]) // front_end["frame_shift"]
    resampled = _path(entry, RESAMPLED, number, "flac")
    again = _read(folder, resampled)
    _check_sound(resampled, again, entry["resampled_rate"], round(samples * entry["resampled_rate"] / RATE))
    layers = {}
    for kind in entry["interference"]:
        path, levels = (_path(entry, kind, number, ending) for ending in ("flac", "npy"))
        alone = _read(folder, path)
        _check_sound(path, alone, RATE, samples)
        layers[kind] = Layer(
            alone, _read_array(levels, _read(folder, levels), (front_end["mel_bins"], frames), np.dtype(np.int8))
        )
    return Utterance(named["speaker"], sound, again, layers)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ProbeError(f"{name} cannot be read: {error.strerror}") from error


def _check_sound(name: str, sound: bytes, rate: int, samples: int | None = None) -> None:
    """Raise ProbeError unless a file is mono audio of this rate and length; counts samples, ignores the header."""
    most = round(MAX_SECONDS * rate) if samples is None else samples
    try:
        with open_audio(sound, expected=_EXPECTED_FRAMES) as file:
            form = (file.rate, file.channels)
            held = file.read(most + 1)[:, 0] if form == (rate, 1) else np.empty(0, np.float32)
    except AudioFileError as error:
        raise ProbeError(f"{name} cannot be read as audio: {error}") from error
    if form != (rate, 1):
        raise ProbeError(f"{name} has {form[1]} channels at {form[0]} Hz, not one at {rate} Hz")
    if samples is not None and len(held) != samples:
        raise ProbeError(f"{name} does not hold the {samples} samples of its utterance")
    if not np.isfinite(held).all():
        raise ProbeError(f"{name} holds samples that are NaN or infinite")


def _read_array(name: str, content: bytes, shape: tuple[int, int], kind: np.dtype[Any]) -> NDArray[Any]:
    """Return the array of an .npy file, of this shape and type, without unpickling."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise ProbeError(f"{name} cannot be read as an array: {error}") from error
    data = content[file.tell() :]
    if (version, header) != ((1, 0), (shape, False, kind)) or len(data) != shape[0] * shape[1] * kind.itemsize:
        what = "bytes" if kind == np.int8 else f"{kind.name} values"
        raise ProbeError(f"{name} is not an array of {shape[0]} x {shape[1]} {what}")
    return np.frombuffer(data, kind).reshape(shape)
