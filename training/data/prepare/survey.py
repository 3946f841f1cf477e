"""Findings about the source files of a corpus: a summary for the screen, the full list in a file."""

from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from speakerlens.training.data.manifest import SPLITS, Corpus, Split

_NAMED = 5

REPORT = "report.txt"
_TITLE = "What was found when this corpus was prepared\n"


class Finding(Enum):
    """What can be wrong with a file or speaker; the value is its text in a report."""

    TWO_SPLITS = "listed in two splits"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    CUT = "cut short"
    TOO_SHORT = "too short"
    SILENT = "digital silence"
    FORMAT = "not 16 kHz mono PCM in WAV or FLAC"
    TWO_SPEAKERS = "the same content under two speakers"
    UNTRAINED = "speakers without training utterances"
    FEW = "speakers without enough usable files, left out"
    TWO_SESSIONS = "speakers with two sessions, of which dev and train share one"
    SAME = "the same content, kept in one split"
    TWICE = "listed twice, used once"
    TWO_PLACES = "in two folders, the first used"
    UNLISTED = "not in the split file, ignored"


_OMISSIBLE = {
    Finding.MISSING,
    Finding.UNREADABLE,
    Finding.CUT,
    Finding.TOO_SHORT,
    Finding.FORMAT,
    Finding.UNTRAINED,
}
_REFUSED = _OMISSIBLE | {Finding.TWO_SPLITS}


BAD_FILES = (Finding.UNREADABLE, Finding.CUT, Finding.TOO_SHORT, Finding.SILENT, Finding.TWO_SPEAKERS)
"""Findings whose files a corpus cannot use."""


class Survey:
    """Findings, ordered by kind as in `Finding`, then as they were added."""

    def __init__(self) -> None:
        self._facts: list[str] = []
        self._found: dict[Finding, list[str]] = defaultdict(list)

    def note(self, fact: str) -> None:
        """Add a sentence to be printed before the findings."""
        self._facts.append(fact)

    def add(self, finding: Finding, names: Iterable[str]) -> None:
        """Add files or speakers, possibly none, to a kind of finding."""
        # Names that are not UTF-8 could not be printed or written.
        self._found[finding] += [name.encode("utf-8", "backslashreplace").decode() for name in names]

    def names(self, finding: Finding) -> list[str]:
        """Return what was added to a kind of finding."""
        return list(self._found[finding])

    def summary(self) -> str:
        """Return the facts, and each kind's count and first few names, as lines without a final newline."""
        found = [f"{finding.value}: {len(names):,} ({some(names)})" for finding, names in self._sorted()]
        return "\n".join([*self._facts, *found])

    def refusal(self, omit: bool) -> str | None:
        """Return the findings that prevent making a corpus, or None.

        Args:
            omit: whether unusable files may be left out.
        """
        refused = _REFUSED - _OMISSIBLE if omit else _REFUSED
        faults = [(finding, names) for finding, names in self._sorted() if finding in refused]
        if not faults:
            return None
        counts = ", ".join(f"{len(names):,} {finding.value}" for finding, names in faults)
        omissible = all(finding in _OMISSIBLE for finding, _ in faults)
        remedy = " or leave them out with --allow-missing" if omissible else ""
        return f"{counts}; correct this{remedy}"

    def write(self, folder: Path) -> None:
        """Write `folder`/report.txt with all facts and findings, one name per line."""
        lines = [_TITLE, *(f"{fact}\n" for fact in self._facts)]
        for finding, names in self._sorted():
            lines += [f"\n{finding.value}: {len(names):,}\n", *(f"  {name}\n" for name in names)]
        (folder / REPORT).write_text("".join(lines), encoding="utf-8")

    def _sorted(self) -> list[tuple[Finding, list[str]]]:
        return [(finding, self._found[finding]) for finding in Finding if self._found[finding]]


def is_utf8(name: str) -> bool:
    """Return whether a name is valid UTF-8; Python decodes other names with lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def some(items: Iterable[str]) -> str:
    """Return the first five items joined, and how many more there are."""
    named = list(items)
    rest = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f", and {rest} more" if rest > 0 else "")


def every(items: Iterable[str]) -> str:
    """Return all items: in one line if they are few, else a line for each."""
    named = list(items)
    return "; ".join(named) if len(named) <= _NAMED else "".join(f"\n  {name}" for name in named) + "\n"


def holds_only_report(folder: Path) -> bool:
    """Return whether a folder contains only the report of a refused run."""
    try:
        names = [path.name for path in folder.iterdir()]
        with (folder / REPORT).open(encoding="utf-8", errors="replace") as file:
            return names == [REPORT] and file.readline() == _TITLE
    except OSError:
        return False


def describe(corpus: Corpus) -> str:
    """Return the counts of a corpus in one line."""
    utterances = {split: corpus.utterances(split) for split in SPLITS}
    outside = {clip.speaker for split in SPLITS for clip in corpus.interference("speech", split)} - {None}
    talkers = f", {len(outside):,} out-of-set talkers" if outside else ""
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
    """Return the counts of the splits as text."""
    return ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
