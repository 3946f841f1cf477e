"""A corpus of one's own recordings: a folder per speaker, and folders of interference."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from speakerlens.training.data.audio import is_silent
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Kind, Split, write_corpus
from speakerlens.training.data.prepare.collection import Collection, collection_pieces, musan, one_by_one, rirs
from speakerlens.training.data.prepare.pieces import (
    REMEDY,
    SPLITS,
    Piece,
    Shares,
    Source,
    audio_files,
    convert,
    is_utf8,
    read_headers,
    some,
    split_randomly,
    too_short,
)
from speakerlens.training.data.prepare.survey import describe
from speakerlens.training.errors import UserError
from speakerlens.training.files import building


@dataclass(frozen=True)
class FolderSettings:
    """What a corpus is made of.

    Attributes:
        speech: contains a folder per speaker, with audio files at any depth.
        interference: folders by kind, with audio files at any depth.
        musan, rirs: unpacked MUSAN and RIRS_NOISES.
        min_seconds: consecutive clips of a speaker are joined into utterances of at least this length.
        shares: shares of each speaker's files and of each kind of interference for dev and test, and the seed.
        outsiders: how many speakers, drawn by the seed, become interfering talkers and out-of-set speakers, each in
            one split only; 0 or at least 3.
    """

    speech: Path
    interference: dict[Kind, Path] = field(default_factory=dict)
    musan: Path | None = None
    rirs: Path | None = None
    min_seconds: float = 0.0
    shares: Shares = field(default_factory=Shares)
    outsiders: int = 0


def prepare_folder(out: Path, settings: FolderSettings, console: Console) -> None:
    """Make a corpus in `out`: 16 kHz mono WAV and FLAC files stay in place, all others are converted.

    All files are checked before anything is written.

    Raises:
        UserError: a setting is wrong, or a folder or file is missing, unreadable or too short; the message names it.
    """
    _check_settings(settings)
    with building(out) as folder:
        pieces = _speech_pieces(settings, console)
        for collection in _collections(settings):
            sources = _sources(collection.paths, collection.name, console)
            pieces += collection_pieces(collection, sources, settings.shares)
        clips = convert(pieces, folder, console)
        corpus = write_corpus(folder, clips)
    console.print(f"{out}: {describe(corpus)}", soft_wrap=True, markup=False)


def _check_settings(settings: FolderSettings) -> None:
    dev, test = settings.shares.dev, settings.shares.test
    if not (dev > 0 and test > 0 and dev + test < 1):
        raise UserError(f"--dev and --test must be above 0 and together below 1, not {dev:g} and {test:g}")
    if settings.min_seconds < 0:
        raise UserError(f"--min-seconds must be at least 0, not {settings.min_seconds:g}")
    if settings.shares.seed < 0:
        raise UserError(f"--seed must be at least 0, not {settings.shares.seed}")
    if settings.outsiders != 0 and settings.outsiders < len(SPLITS):
        raise UserError(
            f"--outsiders must be 0, or at least 3, one each for train, dev and test, not {settings.outsiders}"
        )
    for folder in (settings.speech, *settings.interference.values(), settings.musan, settings.rirs):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")


def _speech_pieces(settings: FolderSettings, console: Console) -> list[Piece]:
    """Assign each speaker's files to splits, then join the files of a split into utterances of `min_seconds`."""
    files = {folder.name: audio_files(folder) for folder in _speaker_folders(settings)}
    outsiders = _draw_outsiders(list(files), settings)
    needed = {name: 1 if name in outsiders else len(SPLITS) for name in files}
    if few := [f"{name} ({len(paths)})" for name, paths in files.items() if len(paths) < needed[name]]:
        raise UserError(
            f"{settings.speech}: every speaker needs at least 3 audio files, one each for train, dev and test, and "
            f"every outsider one; fewer: {some(few)}"
        )
    sources = _sources([path for paths in files.values() for path in paths], "speech", console)
    pieces: list[Piece] = []
    short: list[str] = []
    for name, paths in files.items():
        own = [sources[path] for path in paths]
        kind: Kind = "speech" if name in outsiders else "utterance"
        whole = {outsiders[name]: own} if name in outsiders else None
        for split, part in (whole or _split(own, name, settings)).items():
            utterances = _join(part, settings.min_seconds)
            if not utterances:
                short.append(f"{name} ({sum(source.header.seconds for source in part):.1f} s for {split})")
            for index, utterance in enumerate(utterances):
                target = Path("outsiders" if whole else "speech") / name / f"{split}-{index:04d}.flac"
                pieces.append(Piece(utterance, target, kind, split, name))
    if short:
        raise UserError(
            f"{settings.speech}: speakers with too little for one utterance of {settings.min_seconds:g} s in each of "
            f"train, dev and test (an outsider in one of them): {some(short)}; give more files or a smaller "
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
    if unfit := [repr(folder.name) for folder in folders if not is_utf8(folder.name)]:
        raise UserError(f"{settings.speech}: speaker folder {some(unfit)}: the name is not UTF-8; rename it")
    return folders


def _draw_outsiders(names: Sequence[str], settings: FolderSettings) -> dict[str, Split]:
    """Draw the outsiders and assign them to train, dev and test in turn."""
    rng = np.random.default_rng([settings.shares.seed, *b"outsiders"])
    drawn = rng.permutation(len(names))[: settings.outsiders]
    return {names[index]: SPLITS[place % len(SPLITS)] for place, index in enumerate(drawn)}


def _check_utterances(pieces: Sequence[Piece], console: Console) -> None:
    """Raise UserError naming the utterances that are too short for the network or digital silence."""
    refused: list[str] = []
    for piece in track(pieces, "checking", console=console, transient=True):
        seconds = sum(source.header.seconds for source in piece.sources)
        if seconds < SHORTEST_UTTERANCE:
            refused.append(too_short(piece, seconds))
        elif all(is_silent(source.path) for source in piece.sources):
            refused.append(f"{piece.sources[0].path}: is digital silence")
    if refused:
        raise UserError(f"{len(refused)} of {len(pieces)} utterances cannot be used: {some(refused, '; ')}; {REMEDY}")


def _split(sources: Sequence[Source], name: str, settings: FolderSettings) -> dict[Split, list[Source]]:
    seconds = [source.header.seconds for source in sources]
    return split_randomly(sources, seconds, name, settings.shares, settings.min_seconds)


def _join(sources: Sequence[Source], min_seconds: float) -> list[tuple[Source, ...]]:
    """Join consecutive files into utterances of at least `min_seconds`; a shorter rest joins the last utterance."""
    utterances: list[tuple[Source, ...]] = []
    pending: tuple[Source, ...] = ()
    for source in sources:
        pending += (source,)
        if sum(part.header.seconds for part in pending) >= min_seconds:
            utterances.append(pending)
            pending = ()
    if pending and utterances:
        utterances[-1] += pending
    return utterances


def _collections(settings: FolderSettings) -> list[Collection]:
    own = [one_by_one(kind, folder, kind) for kind, folder in settings.interference.items()]
    unpacked = musan(settings.musan) if settings.musan else []
    return [*own, *unpacked, *([rirs(settings.rirs)] if settings.rirs else [])]


def _sources(paths: Sequence[Path], what: str, console: Console) -> dict[Path, Source]:
    sources, refused = read_headers(paths, what, console)
    refused |= {
        path: f"{path}: cut short, holds {source.header.seconds:g} s of {source.header.promised:g} s"
        for path, source in sources.items()
        if source.header.cut_short
    }
    if refused:
        raise UserError(f"{len(refused)} of {len(paths)} files cannot be used: {some(refused.values(), '; ')}")
    return sources
