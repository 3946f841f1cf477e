"""What was found in the files that a corpus is made of, told at once: in brief on screen, in full in a file."""

from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from speakerlens.training.data.manifest import Corpus, Split
from speakerlens.training.data.prepare.pieces import SPLITS, some

REPORT = "report.txt"
_TITLE = "What was found when this corpus was prepared\n"


class Finding(Enum):
    """A sort of what can be wrong; its value is what a report calls it."""

    TWO_SPLITS = "listed in two splits"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    CUT = "cut short"
    TOO_SHORT = "too short"
    FORMAT = "not 16 kHz mono PCM in WAV or FLAC"
    UNTRAINED = "speakers with nothing to train on"
    TWICE = "listed twice, taken once"
    TWO_PLACES = "in two folders, the first taken"
    UNLISTED = "not in the split file, passed over"


_OMISSIBLE = {
    Finding.MISSING,
    Finding.UNREADABLE,
    Finding.CUT,
    Finding.TOO_SHORT,
    Finding.FORMAT,
    Finding.UNTRAINED,
}
_REFUSED = _OMISSIBLE | {Finding.TWO_SPLITS}


class Survey:
    """Collects findings; the order of the sorts is that of `Finding`, the order within one that of their coming."""

    def __init__(self) -> None:
        self._facts: list[str] = []
        self._found: dict[Finding, list[str]] = defaultdict(list)

    def note(self, fact: str) -> None:
        """Add a sentence that stands before the findings."""
        self._facts.append(fact)

    def add(self, finding: Finding, names: Iterable[str]) -> None:
        """Add files or speakers to a sort; there may be none."""
        # Bytes of a name that are not UTF-8 could be neither printed nor written.
        self._found[finding] += [name.encode("utf-8", "backslashreplace").decode() for name in names]

    def summary(self) -> str:
        """Give the facts, and of each sort how many there are and the first few; lines without an end."""
        found = [f"{finding.value}: {len(names):,} ({some(names)})" for finding, names in self._sorted()]
        return "\n".join([*self._facts, *found])

    def refusal(self, omit: bool) -> str | None:
        """Say what no corpus can be made with, if there is any.

        Args:
            omit: whether what cannot be used may be left out.
        """
        refused = _REFUSED - _OMISSIBLE if omit else _REFUSED
        faults = [(finding, names) for finding, names in self._sorted() if finding in refused]
        if not faults:
            return None
        told = ", ".join(f"{len(names):,} {finding.value}" for finding, names in faults)
        cure = " or leave them out with --allow-missing" if all(sort in _OMISSIBLE for sort, _ in faults) else ""
        return f"{told}; mend this{cure}"

    def write(self, folder: Path) -> None:
        """Write everything, every name on a line of its own, into `folder`/report.txt."""
        lines = [_TITLE, *(f"{fact}\n" for fact in self._facts)]
        for finding, names in self._sorted():
            lines += [f"\n{finding.value}: {len(names):,}\n", *(f"  {name}\n" for name in names)]
        (folder / REPORT).write_text("".join(lines), encoding="utf-8")

    def _sorted(self) -> list[tuple[Finding, list[str]]]:
        return [(finding, self._found[finding]) for finding in Finding if self._found[finding]]


def holds_only_report(folder: Path) -> bool:
    """Whether there is nothing in a folder but the report that a refused run left."""
    try:
        names = [path.name for path in folder.iterdir()]
        with (folder / REPORT).open(encoding="utf-8", errors="replace") as file:
            return names == [REPORT] and file.readline() == _TITLE
    except OSError:
        return False


def describe(corpus: Corpus) -> str:
    """Count what is in a corpus, in one line."""
    utterances = {split: corpus.utterances(split) for split in SPLITS}
    outside = {clip.speaker for split in SPLITS for clip in corpus.interference("speech", split)} - {None}
    talkers = f", {len(outside):,} talkers from outside" if outside else ""
    others = len(corpus.clips) - sum(map(len, utterances.values()))
    counts = count_splits({split: len(clips) for split, clips in utterances.items()})
    length = _length(sum(clip.duration for clips in utterances.values() for clip in clips))
    return (
        f"{len(corpus.speakers):,} speakers{talkers}, utterances: {counts} ({length}), {others:,} files of interference"
    )


def _length(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def count_splits(counts: dict[Split, int]) -> str:
    """Write how many each split has."""
    return ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
