"""Which files must stay in one split: those of a session, those of a recording, and those of the same content."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from speakerlens.training.data.prepare.inspection import Source
from speakerlens.training.data.prepare.survey import some
from speakerlens.training.errors import UserError

_CUTS = (
    re.compile(r"(\d-\d+)-[A-Z](?:-\d+)?"),  # ESC-50: fold, recording, cut, class
    re.compile(r"(\d+)-\d-\d+-\d+"),  # UrbanSound8K: recording, class of one digit, occurrence, slice
    re.compile(r"(?:(.*?)[-_. ])?(?:part|cut|seg|segment|chunk|slice|take|ch|channel|mic)[-_ ]?\d+", re.IGNORECASE),
    re.compile(r"(.+?)[-_ ](?:left|right|l|r)", re.IGNORECASE),
    re.compile(r"(.+?)[-_ ]\d+\.\d+(?:[-_ ]\d+\.\d+)?s?"),  # from and to, in seconds
)
"""Names of files, without suffixes, that are cuts, channels or takes of the recording that the first group names."""


def compiled(pattern: str | None, flag: str) -> re.Pattern[str] | None:
    """Return a regular expression given by a flag; raise UserError if it is not one."""
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"{flag} {pattern!r} is not a regular expression ({error})") from error


def by_session(folder: Path, paths: Sequence[Path], pattern: re.Pattern[str] | None) -> dict[str, list[Path]]:
    """Group a speaker's files by session.

    By default a sub-folder with all below it is a group, and a file beside the sub-folders is one by itself. Where a
    speaker's folder holds one sub-folder and nothing else, that one is looked into.

    Args:
        folder: of the speaker.
        paths: its files, absolute.
        pattern: searched for in the path below the folder; its first group, or else the whole match, names the session.

    Raises:
        UserError: the pattern matches none of some file.
    """
    names = {path: path.relative_to(folder.resolve()) for path in paths}
    if pattern is not None:
        return _by_pattern({path: name.as_posix() for path, name in names.items()}, pattern, "--group-by")
    while names and len({name.parts[0] for name in names.values()}) == 1 and len(next(iter(names.values())).parts) > 1:
        names = {path: Path(*name.parts[1:]) for path, name in names.items()}
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, name in names.items():
        groups[f"{name.parts[0]}/" if len(name.parts) > 1 else name.as_posix()].append(path)
    return dict(groups)


def by_recording(folder: Path, paths: Sequence[Path], pattern: re.Pattern[str] | None) -> dict[str, tuple[Path, ...]]:
    """Group files of interference by the recording that they were cut from, as their names tell.

    Args:
        folder: that contains them at any depth.
        paths: the files, absolute.
        pattern: searched for in the path below the folder, instead of the usual names of cuts.

    Raises:
        UserError: the pattern matches none of some file.
    """
    names = {path: path.relative_to(folder.resolve()).as_posix() for path in paths}
    if pattern is not None:
        groups = _by_pattern(names, pattern, "--group-interference-by")
    else:
        groups = defaultdict(list)
        for path, name in names.items():
            groups[_recording(name, path.stem)].append(path)
    return {name: tuple(members) for name, members in groups.items()}


def _recording(name: str, stem: str) -> str:
    """Return the recording of a file: of ESC-50's and similar names by their number, in whatever folder they are."""
    for number, cut in enumerate(_CUTS):
        if match := cut.fullmatch(stem):
            return match[1] if number < 2 else f"{name.rpartition('/')[0]}/{match[1] or ''}*"
    return name


def _by_pattern(names: Mapping[Path, str], pattern: re.Pattern[str], flag: str) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    unmatched = []
    for path, name in names.items():
        if match := pattern.search(name):
            groups[(match[1] if pattern.groups else match[0]) or ""].append(path)
        else:
            unmatched.append(name)
    if unmatched:
        raise UserError(f"{flag} {pattern.pattern!r} matches none of {len(unmatched)} files: {some(unmatched)}")
    return dict(groups)


def same_content(sources: Iterable[Source]) -> list[list[Source]]:
    """Return the sources that have the same samples as others, together."""
    found: dict[bytes, list[Source]] = defaultdict(list)
    for source in sources:
        found[source.facts.digest].append(source)
    return [group for group in found.values() if len(group) > 1]


def joined(groups: Mapping[str, Sequence[Source]]) -> dict[str, list[Source]]:
    """Join groups that have content in common, under the name of the first."""
    home: dict[str, str] = {}
    first: dict[bytes, str] = {}

    def root(name: str) -> str:
        while (parent := home.get(name, name)) != name:
            name = parent
        return name

    for name, members in groups.items():
        for source in members:
            other = root(first.setdefault(source.facts.digest, name))
            if other != root(name):
                home[root(name)] = other
    together: dict[str, list[Source]] = defaultdict(list)
    for name, members in groups.items():
        together[root(name)] += members
    return dict(together)
