"""A corpus from one's own sound: a folder for each speaker, and folders of interference."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from training.audio import SAMPLE_RATE, AudioHeader, audio_header, is_silent, read_audio, write_audio
from training.errors import UserError
from training.manifest import SHORTEST_UTTERANCE, Clip, Kind, Split, write_corpus
from training.prepare.building import building

SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
"""Which files are taken for audio; others, such as transcripts, are passed over."""

_SPLITS: tuple[Split, ...] = get_args(Split)
_NAMED = 5
_STEM = 50
"""How many characters of a file's name go into that of what it is converted to: 255 bytes hold them all in UTF-8."""
_TOO_QUIET = 2.0**-16
"""Half a step of 16 bits: what does not reach it is rounded to nothing when it is written."""
_CURE = f"take such files out, or join clips with --min-seconds, from {SHORTEST_UTTERANCE:g} up"


@dataclass(frozen=True)
class FolderSettings:
    """What goes into a corpus.

    Attributes:
        speech: has a folder for each speaker, with audio files at any depth.
        interference: folder by kind; audio files at any depth.
        min_seconds: clips of a speaker are joined into utterances of at least this long.
        dev, test: shares of a speaker's files, and of the files of each kind of interference; the rest is train.
        seed: of the splits, and of who becomes an outsider.
        outsiders: how many speakers are taken out of the speaker set, to be interfering talkers and strangers; each
            of them is in one split only. 0, or at least one for each split.
    """

    speech: Path
    interference: dict[Kind, Path] = field(default_factory=dict)
    min_seconds: float = 0.0
    dev: float = 0.1
    test: float = 0.2
    seed: int = 0
    outsiders: int = 0


@dataclass(frozen=True)
class _Source:
    path: Path
    header: AudioHeader

    @property
    def ready(self) -> bool:
        """Whether training can read crops of the file as it is: nothing to convert, and seeking is cheap."""
        header = self.header
        plain = header.container in ("WAV", "FLAC") and header.encoding.startswith("PCM")
        return plain and header.rate == SAMPLE_RATE and header.channels == 1


@dataclass(frozen=True)
class _Piece:
    """A clip of the corpus to be: what it is made of, and where to put it unless it can stay where it is."""

    sources: tuple[_Source, ...]
    target: Path
    kind: Kind
    split: Split
    speaker: str | None


def prepare_folder(out: Path, settings: FolderSettings, console: Console) -> None:
    """Make a corpus in `out`. 16 kHz mono WAV and FLAC files are referred to, all others converted to such.

    Everything is checked before anything is written.

    Raises:
        UserError: a folder or file is missing, cannot be read or holds too little; the message names it.
    """
    _check_settings(settings)
    with building(out) as folder:
        pieces = _speech_pieces(settings, console)
        for kind, source in settings.interference.items():
            pieces += _interference_pieces(source, kind, settings, console)
        clips = _convert(pieces, folder, console)
        corpus = write_corpus(folder, clips)
    seconds = sum(clip.duration for clip in clips if clip.kind == "utterance")
    outsiders = f", {settings.outsiders} outsiders" if settings.outsiders else ""
    counts = ", ".join(f"{split} {len(corpus.utterances(split))}" for split in _SPLITS)
    others = len(clips) - sum(len(corpus.utterances(split)) for split in _SPLITS)
    console.print(
        f"{out}: {len(corpus.speakers)} speakers{outsiders}, utterances: {counts} ({seconds / 60:.0f} min), "
        f"{others} files of interference",
        soft_wrap=True,
        markup=False,
    )


def share_out(seconds: Sequence[float], shares: dict[Split, float], min_seconds: float = 0.0) -> dict[Split, list[int]]:
    """Share out files, given by their lengths and in random order, to test, dev and train.

    Test and dev each get their share of the files, rounded, but at least one file and at least `min_seconds` in all;
    train gets the rest, and where there is none, nothing.

    Returns:
        The indices of each split's files.
    """
    parts: dict[Split, list[int]] = {"train": [], "dev": [], "test": []}
    waiting = list(range(len(seconds)))
    for split, share in shares.items():
        count = max(1, round(share * len(seconds)))
        part = parts[split]
        while waiting and (len(part) < count or sum(seconds[index] for index in part) < min_seconds):
            part.append(waiting.pop(0))
    parts["train"] = waiting
    return parts


def _check_settings(settings: FolderSettings) -> None:
    if not (settings.dev > 0 and settings.test > 0 and settings.dev + settings.test < 1):
        raise UserError(
            f"--dev and --test must be above 0 and together below 1, not {settings.dev:g} and {settings.test:g}"
        )
    if settings.min_seconds < 0:
        raise UserError(f"--min-seconds must be at least 0, not {settings.min_seconds:g}")
    if settings.seed < 0:
        raise UserError(f"--seed must be at least 0, not {settings.seed}")
    if settings.outsiders != 0 and settings.outsiders < len(_SPLITS):
        raise UserError(
            f"--outsiders must be 0, or at least 3, one each for train, dev and test, not {settings.outsiders}"
        )
    for folder in (settings.speech, *settings.interference.values()):
        if not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")


def _speech_pieces(settings: FolderSettings, console: Console) -> list[_Piece]:
    """Split each speaker's files, then join the files of a split into utterances that are long enough."""
    files = {folder.name: _audio_files(folder) for folder in _speaker_folders(settings)}
    outsiders = _draw_outsiders(list(files), settings)
    needed = {name: 1 if name in outsiders else len(_SPLITS) for name in files}
    if few := [f"{name} ({len(paths)})" for name, paths in files.items() if len(paths) < needed[name]]:
        raise UserError(
            f"{settings.speech}: every speaker needs at least 3 audio files, one each for train, dev and test, and "
            f"every outsider one; fewer: {_some(few)}"
        )
    sources = _headers([path for paths in files.values() for path in paths], "speech", console)
    pieces: list[_Piece] = []
    short: list[str] = []
    for name, paths in files.items():
        own = [sources[path] for path in paths]
        kind: Kind = "speech" if name in outsiders else "utterance"
        whole = {outsiders[name]: own} if name in outsiders else None
        for split, part in (whole or _split(own, name, settings, settings.min_seconds)).items():
            utterances = _join(part, settings.min_seconds)
            if not utterances:
                short.append(f"{name} ({sum(source.header.seconds for source in part):.1f} s for {split})")
            for index, utterance in enumerate(utterances):
                target = Path("outsiders" if whole else "speech") / name / f"{split}-{index:04d}.flac"
                pieces.append(_Piece(utterance, target, kind, split, name))
    if short:
        raise UserError(
            f"{settings.speech}: speakers with too little for one utterance of {settings.min_seconds:g} s in each of "
            f"train, dev and test (an outsider in one of them): {_some(short)}; give more files or a smaller "
            "--min-seconds"
        )
    _check_utterances(pieces, console)
    return pieces


def _speaker_folders(settings: FolderSettings) -> list[Path]:
    folders = sorted(path for path in settings.speech.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) - settings.outsiders < 2:
        beside = f" beside the {settings.outsiders} outsiders" if settings.outsiders else ""
        raise UserError(
            f"{settings.speech}: must hold a folder for each of at least 2 speakers{beside}, "
            f"not {len(folders)} folder(s)"
        )
    if unfit := [repr(folder.name) for folder in folders if not _is_utf8(folder.name)]:
        raise UserError(f"{settings.speech}: speaker folder {_some(unfit)}: the name is not UTF-8; rename it")
    return folders


def _draw_outsiders(names: Sequence[str], settings: FolderSettings) -> dict[str, Split]:
    """Draw who becomes an outsider, and deal them round to train, dev and test."""
    rng = np.random.default_rng([settings.seed, *b"outsiders"])
    drawn = rng.permutation(len(names))[: settings.outsiders]
    return {names[index]: _SPLITS[place % len(_SPLITS)] for place, index in enumerate(drawn)}


def _check_utterances(pieces: Sequence[_Piece], console: Console) -> None:
    """Name every utterance that is too short for the network, or in which there is nothing to hear."""
    refused: list[str] = []
    for piece in track(pieces, "listening", console=console, transient=True):
        seconds = sum(source.header.seconds for source in piece.sources)
        if seconds < SHORTEST_UTTERANCE:
            refused.append(_too_short(piece, seconds))
        elif all(is_silent(source.path) for source in piece.sources):
            refused.append(f"{piece.sources[0].path}: holds nothing but digital silence")
    if refused:
        raise UserError(f"{len(refused)} of {len(pieces)} utterances cannot be used: {_some(refused, '; ')}; {_CURE}")


def _interference_pieces(folder: Path, kind: Kind, settings: FolderSettings, console: Console) -> list[_Piece]:
    paths = _audio_files(folder)
    if len(paths) < len(_SPLITS):
        raise UserError(
            f"{folder}: needs at least 3 audio files, one each for train, dev and test, and has {len(paths)}"
        )
    sources = _headers(paths, kind, console)
    return [
        _Piece((source,), Path(kind) / f"{split}-{index:04d}-{source.path.stem[:_STEM]}.flac", kind, split, None)
        for split, part in _split([sources[path] for path in paths], kind, settings).items()
        for index, source in enumerate(part)
    ]


def _audio_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _headers(paths: Sequence[Path], what: str, console: Console) -> dict[Path, _Source]:
    """Read the headers of all files, so that what cannot be read is named at once and before any work."""
    sources: dict[Path, _Source] = {}
    refused: list[str] = []
    for path in track(paths, f"looking at {what}", console=console, transient=True):
        if not _is_utf8(str(path)):
            refused.append(f"{str(path)!r}: the name is not UTF-8")
            continue
        try:
            sources[path] = _Source(path.resolve(), audio_header(path))
        except UserError as error:
            refused.append(str(error))
    if refused:
        raise UserError(f"{len(refused)} of {len(paths)} files cannot be used: {_some(refused, '; ')}")
    return sources


def _split(
    sources: Sequence[_Source], name: str, settings: FolderSettings, min_seconds: float = 0.0
) -> dict[Split, list[_Source]]:
    """Part files at random, each part in the files' order; `name` seeds, so that other folders change nothing."""
    rng = np.random.default_rng([settings.seed, *name.encode()])
    shuffled = [int(index) for index in rng.permutation(len(sources))]
    seconds = [sources[index].header.seconds for index in shuffled]
    parts = share_out(seconds, {"test": settings.test, "dev": settings.dev}, min_seconds)
    return {
        split: [sources[index] for index in sorted(shuffled[place] for place in part)] for split, part in parts.items()
    }


def _join(sources: Sequence[_Source], min_seconds: float) -> list[tuple[_Source, ...]]:
    """Join consecutive files into utterances that are long enough; a short rest goes to the last, if there is one."""
    utterances: list[tuple[_Source, ...]] = []
    pending: tuple[_Source, ...] = ()
    for source in sources:
        pending += (source,)
        if sum(part.header.seconds for part in pending) >= min_seconds:
            utterances.append(pending)
            pending = ()
    if pending and utterances:
        utterances[-1] += pending
    return utterances


def _convert(pieces: Sequence[_Piece], folder: Path, console: Console) -> list[Clip]:
    """Write what needs writing; decoding, resampling and encoding let other threads run."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            clips = threads.map(_make_clip, pieces, repeat(folder))
            return list(track(clips, "converting", len(pieces), console=console))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _make_clip(piece: _Piece, folder: Path) -> Clip:
    first = piece.sources[0]
    if len(piece.sources) == 1 and first.ready:
        return Clip(first.path, piece.kind, piece.split, 0.0, first.header.seconds, piece.speaker)
    # The channels of an impulse response are microphones at different places: their mean is no room's response.
    channel = 0 if piece.kind == "rir" else None
    samples = np.concatenate([read_audio(source.path, channel=channel) for source in piece.sources])
    if not len(samples):
        raise UserError(f"{first.path}: holds no audio")
    if piece.speaker is not None:
        _check_converted(piece, samples)
    write_audio(folder / piece.target, _fit(samples, piece.kind))
    return Clip(piece.target, piece.kind, piece.split, 0.0, len(samples) / SAMPLE_RATE, piece.speaker)


def _check_converted(piece: _Piece, samples: NDArray[np.float32]) -> None:
    """Raise UserError for what no header tells: resampling drops a sample, channels cancel, 16 bits are too few."""
    if len(samples) < SHORTEST_UTTERANCE * SAMPLE_RATE:
        raise UserError(f"{_too_short(piece, len(samples) / SAMPLE_RATE)}; {_CURE}")
    if np.abs(samples).max() < _TOO_QUIET:
        raise UserError(f"{piece.sources[0].path}: is digital silence in 16 bits, as mono; {_CURE}")


def _too_short(piece: _Piece, seconds: float) -> str:
    return f"{piece.sources[0].path}: lasts {seconds:g} s, and must last at least {SHORTEST_UTTERANCE:g} s"


def _fit(samples: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Scale down what would clip; an impulse response, of which only the shape matters, to use the whole range."""
    peak = float(np.abs(samples).max())
    if peak > 1.0 or (kind == "rir" and peak > 0.0):
        return samples * np.float32(0.99 / peak)
    return samples


def _is_utf8(name: str) -> bool:
    """Whether a name can be written into a manifest; Python reads other names' bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _some(items: Sequence[str], separator: str = ", ") -> str:
    """Name the first few."""
    rest = len(items) - _NAMED
    return separator.join(items[:_NAMED]) + (f"{separator}and {rest} more" if rest > 0 else "")
