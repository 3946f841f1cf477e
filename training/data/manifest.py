"""Corpora: a folder with a manifest of its clips, in JSON lines."""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

from speakerlens.training.errors import UserError

MANIFEST = "manifest.jsonl"
SHORTEST_UTTERANCE = 0.2
"""Seconds; the network's last stages need a few frames."""

Kind = Literal["utterance", "noise", "music", "speech", "rir"]
Split = Literal["train", "dev", "test"]

_KEYS = {"path", "kind", "split", "start", "duration", "speaker"}
_KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
_LISTERS = 8
"""Threads that list folders, as each listing may wait for a network file system."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of an audio file.

    Attributes:
        path: the file; absolute once loaded, relative to the manifest's folder in the manifest.
        kind: "utterance" of a known speaker, or a kind of interference; "speech" is a talker outside the speaker set.
        split: part of the corpus that it belongs to.
        start: position in the file, in seconds.
        duration: its length in seconds; at least 0.2 for an utterance.
        speaker: name; always given for an utterance, for "speech" where known, else None.
    """

    path: Path
    kind: Kind
    split: Split
    start: float
    duration: float
    speaker: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A loaded manifest.

    Attributes:
        root: the corpus folder.
        clips: all clips, in the manifest's order.
        digest: SHA-256 of the manifest file, in hex.
    """

    root: Path
    clips: tuple[Clip, ...]
    digest: str

    @cached_property
    def speakers(self) -> tuple[str, ...]:
        """The known speakers, sorted; their order is that of the labels."""
        return tuple(sorted({clip.speaker for clip in self.clips if clip.kind == "utterance" and clip.speaker}))

    def utterances(self, split: Split) -> tuple[Clip, ...]:
        """Return the speakers' utterances of a split."""
        return self._select("utterance", split)

    def interference(self, kind: Kind, split: Split) -> tuple[Clip, ...]:
        """Return the interference clips of a kind in a split; empty if there are none."""
        return self._select(kind, split)

    @cached_property
    def _selections(self) -> dict[tuple[Kind, Split], tuple[Clip, ...]]:
        groups: dict[tuple[Kind, Split], list[Clip]] = defaultdict(list)
        for clip in self.clips:
            groups[clip.kind, clip.split].append(clip)
        return {key: tuple(clips) for key, clips in groups.items()}

    def _select(self, kind: Kind, split: Split) -> tuple[Clip, ...]:
        return self._selections.get((kind, split), ())


def spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Return at most `count` clips, evenly spaced in the order given."""
    if len(clips) <= count:
        return list(clips)
    return [clips[position * (len(clips) - 1) // max(count - 1, 1)] for position in range(count)]


def load_corpus(folder: Path) -> Corpus:
    """Read `folder`/manifest.jsonl and check every line of it.

    Raises:
        UserError: there is no manifest, or a line of it is wrong; the message names the line.
    """
    file = folder / MANIFEST
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{folder}: no {MANIFEST} to read; make a corpus with the command `prepare`") from error
    root = folder.resolve()
    base = str(root)
    clips: list[Clip] = []
    numbers: list[int] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                clips.append(_parse(line, base))
            except ValueError as error:
                raise UserError(f"{file}, line {number}: {error}") from error
            numbers.append(number)
    if gone := _missing(str(clip.path) for clip in clips):
        number, path = next((n, clip.path) for n, clip in zip(numbers, clips, strict=True) if str(clip.path) in gone)
        several = f"; {len(gone)} files are missing in all" if len(gone) > 1 else ""
        raise UserError(f"{file}, line {number}: there is no file {path}{several}")
    corpus = Corpus(root, tuple(clips), hashlib.sha256(content).hexdigest())
    if not corpus.speakers:
        raise UserError(f"{file}: has no utterance of any speaker")
    return corpus


def write_corpus(folder: Path, clips: Iterable[Clip]) -> Corpus:
    """Write `folder`/manifest.jsonl atomically, and load it.

    A clip's path may be absolute or relative to `folder`. The manifest stores paths relative to `folder`, so that the
    folder can be moved, together with the files outside it that it refers to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.resolve()
    unfinished = folder / f".{MANIFEST}.{os.getpid()}"
    with unfinished.open("w", encoding="utf-8") as file:
        for clip in clips:
            file.write(json.dumps(_record(clip, root), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MANIFEST)
    return load_corpus(folder)


def _record(clip: Clip, root: Path) -> dict[str, str | float | None]:
    path = clip.path if clip.path.is_absolute() else root / clip.path
    # Not resolved, so that links keep their names. relpath, because Path.relative_to cannot climb before Python 3.12.
    relative = Path(os.path.relpath(path, root)).as_posix()
    return {
        "path": relative,
        "kind": clip.kind,
        "split": clip.split,
        "start": clip.start,
        "duration": clip.duration,
        "speaker": clip.speaker,
    }


def _missing(paths: Iterable[str]) -> set[str]:
    """Return which of `paths` are not files, by listing their folders, which are far fewer."""
    named: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parent, name = os.path.split(path)
        named[parent].add(name)

    def look(parents: Sequence[str]) -> list[Path]:
        gone = [Path(parent, name) for parent in parents for name in named[parent] - _files(parent)]
        # Checked once more by name: some folders can be searched but not listed.
        return [path for path in gone if not path.is_file()]

    with ThreadPoolExecutor(_LISTERS) as threads:
        shares = [list(named)[first::_LISTERS] for first in range(_LISTERS)]
        return {str(path) for found in threads.map(look, shares) for path in found}


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _parse(line: bytes, root: str) -> Clip:
    """Return the clip of a line of the manifest; raise ValueError saying what is wrong with it."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(record, dict) or set(record) != _KEYS:
        raise ValueError(f"must be an object with the keys {', '.join(sorted(_KEYS))}")
    kind, split, speaker = record["kind"], record["split"], record["speaker"]
    _check_choice("kind", kind, _KINDS)
    _check_choice("split", split, SPLITS)
    start, duration = _number("start", record["start"]), _number("duration", record["duration"])
    if start < 0 or duration <= 0:
        raise ValueError(f"start must be at least 0 and duration above 0, not {start:g} and {duration:g}")
    if kind == "utterance" and duration < SHORTEST_UTTERANCE:
        raise ValueError(f"an utterance must last at least {SHORTEST_UTTERANCE:g} s, not {duration:g}")
    if speaker is not None and not (isinstance(speaker, str) and speaker):
        raise ValueError(f"speaker must be a name or null, not {speaker!r}")
    if kind == "utterance" and speaker is None:
        raise ValueError("an utterance needs a speaker")
    if not isinstance(record["path"], str) or not record["path"]:
        raise ValueError(f"path must be a file name, not {record['path']!r}")
    path = Path(os.path.normpath(os.path.join(root, record["path"])))  # noqa: PTH118 (Path is slower than the rest of this function)
    return Clip(path, cast(Kind, kind), cast(Split, split), start, duration, speaker)


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, not {value!r}")


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number of seconds, not {value!r}")
    return float(value)
