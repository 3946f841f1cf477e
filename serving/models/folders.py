"""Where bundles lie: the folders that look like bundles, and whether one has changed since the last look."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

NUMBER = re.compile(r"[1-9]\d*")

Stamp = frozenset[tuple[str, int, int, int, int]]
"""Of every file in a folder: path, inode, size, and the nanoseconds of its two times. Who writes changes it."""


@dataclass(frozen=True)
class BundleFolder:
    """A folder <variant>/<version>; `version` is 0 where the name is no number, as no bundle's is then."""

    folder: Path
    variant: str
    version: int
    stamp: Stamp

    @property
    def name(self) -> str:
        """How logs and messages call it."""
        return f"{self.variant}/{self.folder.name}"


def list_bundles(root: Path) -> dict[str, list[BundleFolder]]:
    """The folders <variant>/<version> under `root` by variant, newest first; names with a leading dot are skipped.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = {variant.name: _versions(variant) for variant in sorted(_folders(root))}
    return {name: versions for name, versions in found.items() if versions}


def stamp_of(folder: Path) -> Stamp:
    """What `folder` holds, as far as can be told without reading it."""
    facts = set()
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                stat = path.stat()
            except OSError:  # gone meanwhile, which the next look sees
                continue
            inside = path.relative_to(folder).as_posix()
            facts.add((inside, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return frozenset(facts)


def _folders(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]


def _versions(variant: Path) -> list[BundleFolder]:
    try:
        folders = _folders(variant)
    except FileNotFoundError:  # removed since it was listed
        return []
    found = [
        BundleFolder(each, variant.name, int(each.name) if NUMBER.fullmatch(each.name) else 0, stamp_of(each))
        for each in folders
    ]
    return sorted(found, key=lambda one: (-one.version, one.folder.name))
