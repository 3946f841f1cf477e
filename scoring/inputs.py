"""The recordings of an archive, frozen in a file when it begins, and the shards that it is cut into."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from speakerlens.containers import FFMPEG_SUFFIXES, SUFFIXES
from speakerlens.signatures import HEADER_BYTES, header_name

# More than are read ahead by a scorer, which so never waits for a shard while it holds one that is done.
SHARD_SOURCES = 512
AUDIO = SUFFIXES | FFMPEG_SUFFIXES  # without the extra `formats` the latter fail, and are named
END = b"\0"
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Shard:
    """Consecutive recordings of an archive: its number, where its names begin in the file, and how many it has."""

    number: int
    offset: int
    count: int

    @property
    def name(self) -> str:
        """Return the name of its part of the table, without a suffix; parts sort by it."""
        return f"{self.number:09d}"


class InputError(Exception):
    """Recordings, or options, with which nothing can be scored: one sentence."""


def write_inputs(source: str, file: Path) -> tuple[int, str]:
    """Write the paths of the recordings of a folder, a list or standard input to a file.

    A folder is searched with its subfolders for files that are audio by their suffix, in the order of their names;
    hidden ones are passed over, and links to folders. A list has a path on each line, or between NUL characters; paths
    are relative to the working directory.

    Args:
        source: folder or file; `-` is standard input.
        file: to write.

    Returns:
        How many they are, and the SHA-256 of the written file.

    Raises:
        InputError: the source cannot be read, or has no recordings.
    """
    count, digest = 0, hashlib.sha256()
    try:
        folder = source != "-" and Path(source).is_dir()
        paths = _walked(Path(source)) if folder else _listed(source)
        with file.open("wb") as content:
            for path in paths:
                line = path + END
                content.write(line)
                digest.update(line)
                count += 1
    except OSError as error:
        raise InputError(f"{error.filename or source}: {error.strerror}") from error
    if not count:
        what = "a file of these kinds: " + " ".join(sorted(AUDIO)) if folder else "a path"
        raise InputError(f"{source}: empty; there must be {what}")
    return count, digest.hexdigest()


def _walked(folder: Path) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walked(Path(entry.path))
        elif Path(entry.name).suffix.lower() in AUDIO and entry.is_file():  # a pipe would never end
            yield os.fsencode(entry.path)


def _listed(source: str) -> Iterator[bytes]:
    if source == "-":
        yield from _split(sys.stdin.buffer, source)
    else:
        with Path(source).open("rb") as content:
            yield from _split(content, source)


def _split(content: BinaryIO, source: str) -> Iterator[bytes]:
    """Yield the paths of a list; whether lines or NUL characters end them is seen in its first block."""
    rest, separator = b"", b""
    while block := content.read(BLOCK_BYTES):
        if not separator:
            if name := header_name(block[:HEADER_BYTES]):
                raise InputError(f"{source}: a {name} file, where a list of paths or a folder is expected")
            separator = END if END in block else b"\n"
        *lines, rest = (rest + block).split(separator)
        yield from _paths(lines)
    yield from _paths([rest])


def _paths(lines: list[bytes]) -> Iterator[bytes]:
    for line in lines:
        path = line.removesuffix(b"\r")
        if path:
            yield path


def shards(file: Path) -> Iterator[Shard]:
    """Yield the shards of an archive's recordings, in order."""
    number = offset = position = count = 0
    with file.open("rb") as content:
        rest = b""
        while block := content.read(BLOCK_BYTES):
            *names, rest = (rest + block).split(END)
            for name in names:
                position += len(name) + 1
                count += 1
                if count == SHARD_SOURCES:
                    yield Shard(number, offset, count)
                    number, offset, count = number + 1, position, 0
    if count:
        yield Shard(number, offset, count)


def paths_of(file: Path, shard: Shard) -> list[str]:
    """Return the paths of a shard."""
    paths: list[str] = []
    with file.open("rb") as content:
        content.seek(shard.offset)
        rest = b""
        while len(paths) < shard.count:
            *names, rest = (rest + content.read(2**16)).split(END)
            paths += map(os.fsdecode, names)
    return paths[: shard.count]
