"""VoxCeleb1 (Nagrani, Chung and Zisserman, Interspeech 2017) with its identification split, used in place.

Every file is read whole before anything is written.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, SPLITS, Clip, Split, write_corpus
from speakerlens.training.data.prepare.collection import Collection, collection_pieces, musan, rirs
from speakerlens.training.data.prepare.inspection import Source, in_threads, read_whole
from speakerlens.training.data.prepare.pieces import Piece, Shares, convert
from speakerlens.training.data.prepare.survey import REPORT, Finding, Survey, count_splits, describe, holds_only_report
from speakerlens.training.errors import UserError
from speakerlens.training.files import building, is_free, make_folder

OFFICIAL_SPEAKERS = 1_251
OFFICIAL_COUNTS: dict[Split, int] = {"train": 138_361, "dev": 6_904, "test": 8_251}
"""Utterances in the official identification split, iden_split.txt."""

_LINE = re.compile(r"([123])\s+([^/\s.][^/\s]*/[^/\s.][^/\s]*/[^/\s.][^/\s]*\.wav)")
_NUMBERS: dict[str, Split] = {"1": "train", "2": "dev", "3": "test"}
_SPEAKER = re.compile(r"id\d{5}")
_PLACES = ("", "wav", "dev/wav", "test/wav")
"""Where the speakers' folders may be: both archives unpacked together, or each in its own folder."""
_LISTERS = 16


@dataclass(frozen=True)
class Voxceleb1Settings:
    """What the corpus is made of.

    Attributes:
        root: the folder that VoxCeleb1 was unpacked in.
        split: the file iden_split.txt.
        musan, rirs: unpacked MUSAN and RIRS_NOISES.
        allow_missing: leave out unusable files instead of refusing.
    """

    root: Path
    split: Path
    musan: Path | None = None
    rirs: Path | None = None
    allow_missing: bool = False


def prepare_voxceleb1(out: Path, settings: Voxceleb1Settings, console: Console) -> None:
    """Make a corpus of VoxCeleb1 in `out`, with a report of the findings.

    Raises:
        UserError: a file is missing or unusable and may not be left out (`out` then holds only the report), the split
            file is invalid, or `out` is not free.
    """
    for folder in (settings.root, settings.musan, settings.rirs):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")
    if not is_free(out) and not holds_only_report(out):
        raise UserError(f"{out}: is not empty; remove it or choose another folder with --out")
    survey = Survey()
    collections = [
        *(musan(settings.musan) if settings.musan else []),
        *([rirs(settings.rirs)] if settings.rirs else []),
    ]
    clips = _speech(settings, survey, console)
    usable = [_inspect(collection, survey, console) for collection in collections]
    console.print(survey.summary(), soft_wrap=True, markup=False, highlight=False)
    if holds_only_report(out):
        (out / REPORT).unlink()
    if refusal := survey.refusal(settings.allow_missing):
        _leave_report(survey, out)
        raise UserError(f"{settings.root}: {refusal}; {out / REPORT} lists all")
    try:
        pieces = _all_pieces(collections, usable)
    except UserError:
        _leave_report(survey, out)
        raise
    if (speakers := len({clip.speaker for clip in clips})) < 2:
        raise UserError(f"{settings.root}: utterances of at least 2 speakers are needed, not of {speakers}")
    with building(out) as folder:
        survey.write(folder)
        corpus = write_corpus(folder, [*clips, *convert(pieces, folder, console)])
    console.print(f"{out}: {describe(corpus)}", soft_wrap=True, markup=False, highlight=False)


def _all_pieces(collections: Sequence[Collection], usable: Sequence[Mapping[Path, Source]]) -> list[Piece]:
    pairs = zip(collections, usable, strict=True)
    return [piece for collection, sources in pairs for piece in collection_pieces(collection, sources, Shares())]


def _leave_report(survey: Survey, out: Path) -> None:
    make_folder(out)
    survey.write(out)


def _speech(settings: Voxceleb1Settings, survey: Survey, console: Console) -> list[Clip]:
    """Return the usable utterances of the split; add the others to the survey."""
    listed = _read_split(settings.split, survey)
    speakers = {name.split("/", 1)[0] for name in listed}
    found = _find(settings.root.resolve(), speakers, survey, console)
    if not found.keys() & listed.keys():
        raise UserError(
            f"{settings.root}: holds none of the {len(listed):,} files that {settings.split} names, such as "
            f"{next(iter(listed))}; they may be directly in it, in wav, or in dev/wav and test/wav"
        )
    survey.add(Finding.MISSING, (name for name in listed if name not in found))
    survey.add(Finding.UNLISTED, sorted(found.keys() - listed.keys()))
    paths = {name: found[name] for name in listed if name in found}
    sources, refused = read_whole(list(paths.values()), "VoxCeleb1", console)
    survey.add(Finding.UNREADABLE, refused.values())
    usable = {
        name: sources[path] for name, path in paths.items() if path in sources and _fits(name, sources[path], survey)
    }
    trained = {name.split("/", 1)[0] for name in usable if listed[name] == "train"}
    survey.add(Finding.UNTRAINED, sorted(speakers - trained))
    return [
        Clip(source.path, "utterance", listed[name], 0.0, source.facts.seconds, name.split("/", 1)[0])
        for name, source in usable.items()
        if name.split("/", 1)[0] in trained
    ]


def _read_split(path: Path, survey: Survey) -> dict[str, Split]:
    """Return the split of each utterance, in the file's order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as the split file iden_split.txt ({error})") from error
    listed: dict[str, Split] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise UserError(
                f"{path}, line {number}: must be 1, 2 or 3 and a file, such as '1 id10003/na8-QEFmj44/00003.wav', "
                f"not {line.strip()[:100]!r}"
            )
        split, name = _NUMBERS[match[1]], match[2]
        if name in listed:
            survey.add(Finding.TWICE if listed[name] == split else Finding.TWO_SPLITS, [name])
        listed.setdefault(name, split)
    if not listed:
        raise UserError(f"{path}: names no file")
    _compare_with_official(path, listed, survey)
    return listed


def _compare_with_official(path: Path, listed: Mapping[str, Split], survey: Survey) -> None:
    counts = Counter(listed.values())
    speakers = len({name.split("/", 1)[0] for name in listed})
    official = speakers == OFFICIAL_SPEAKERS and all(counts[split] == OFFICIAL_COUNTS[split] for split in SPLITS)
    verdict = (
        "as in the official split"
        if official
        else f"but the official split has {OFFICIAL_SPEAKERS:,} speakers and {count_splits(OFFICIAL_COUNTS)}"
    )
    survey.note(
        f"{path}: {len(listed):,} utterances of {speakers:,} speakers "
        f"({count_splits({split: counts[split] for split in SPLITS})}), {verdict}"
    )


def _find(root: Path, speakers: set[str], survey: Survey, console: Console) -> dict[str, Path]:
    """Return the paths of all utterances, by their names in the split file."""
    folders = []
    for place in dict.fromkeys((root / place).resolve() for place in _PLACES):
        inside = sorted(place.iterdir()) if place.is_dir() else []
        folders += [path for path in inside if path.name in speakers or _SPEAKER.fullmatch(path.name)]
    found: dict[str, Path] = {}
    doubled = []
    listings = in_threads(_wavs, folders, "listing VoxCeleb1", console, _LISTERS)
    for folder, names in zip(folders, listings, strict=True):
        for name in names:
            if name in found:
                doubled.append(name)
            found.setdefault(name, folder.parent / name)
    survey.add(Finding.TWO_PLACES, doubled)
    return found


def _wavs(speaker: Path) -> list[str]:
    """Return the names speaker/video/file.wav of a speaker's folder."""
    names = []
    try:
        for video in sorted(path for path in speaker.iterdir() if path.is_dir()):
            with os.scandir(video) as files:
                wavs = sorted(file.name for file in files if file.name.endswith(".wav") and file.is_file())
            names += [f"{speaker.name}/{video.name}/{name}" for name in wavs]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error
    return names


def _fits(name: str, source: Source, survey: Survey) -> bool:
    """Return whether training can read an utterance as it is; if not, add it to the survey."""
    facts = source.facts
    if facts.cut_short:
        survey.add(Finding.CUT, [_cut(name, source)])
        return False
    if facts.seconds < SHORTEST_UTTERANCE:
        survey.add(Finding.TOO_SHORT, [f"{name}: {facts.seconds:g} s, at least {SHORTEST_UTTERANCE:g} s are needed"])
        return False
    if not source.ready:
        form = f"{facts.rate} Hz, {facts.channels} channels, {facts.container} {facts.encoding}"
        survey.add(Finding.FORMAT, [f"{name}: {form}"])
        return False
    return True


def _cut(name: str, source: Source) -> str:
    return f"{name}: {source.facts.seconds:g} s of {source.facts.promised:g} s"


def _inspect(collection: Collection, survey: Survey, console: Console) -> dict[Path, Source]:
    """Return the usable files of MUSAN or RIRS_NOISES; add the others to the survey."""
    sources, refused = read_whole(collection.paths, collection.name, console, collection.channel)
    survey.add(Finding.UNREADABLE, refused.values())
    survey.add(Finding.CUT, (_cut(str(path), source) for path, source in sources.items() if source.facts.cut_short))
    survey.note(f"{collection.where}: {len(collection.paths):,} files of {collection.kind}")
    return {path: source for path, source in sources.items() if not source.facts.cut_short}
