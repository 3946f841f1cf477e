"""List the bundle folders on disk, with a stamp that changes whenever a file in the folder does."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

NUMBER = re.compile(r"[1-9]\d*")

Stamp = frozenset[tuple[str, int, int, int, int]]
"""Path, inode, size, and modification and change times (ns) of every file in a folder."""


@dataclass(frozen=True)
class BundleFolder:
    """A folder <variant>/<version>; `version` is 0, which no bundle has, if its name is not a number.

    Attributes:
        error: why the folder <variant>, which then stands for its versions, cannot be listed; empty where it can.
    """

    folder: Path
    variant: str
    version: int
    stamp: Stamp
    error: str = ""

    @property
    def name(self) -> str:
        """`variant/version`, for logs and messages."""
        return f"{self.variant}/{self.folder.name}"


def list_bundles(root: Path) -> dict[str, list[BundleFolder]]:
    """Return the folders <variant>/<version> under `root` by variant, newest first; hidden folders are skipped.

    A folder <variant> that cannot be listed is an entry with an error.

    Raises:
        OSError: `root` cannot be listed.
    """
    found = {variant.name: _versions(variant) for variant in sorted(_folders(root))}
    return {name: versions for name, versions in found.items() if versions}


def stamp_of(folder: Path) -> Stamp:
    """Return the stamp of a folder, without reading its files."""
    facts = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                stat = path.stat()
            except OSError:  # removed meanwhile; the next scan sees it
                continue
            inside = path.relative_to(folder).as_posix()
            facts.add((inside, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return frozenset(facts)


def _folders(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if not each.name.startswith(".") and each.is_dir()]


def _versions(variant: Path) -> list[BundleFolder]:
    try:
        folders = _folders(variant)
    except FileNotFoundError:  # removed since it was listed
        return []
    except OSError as error:
        return [BundleFolder(variant, variant.name, 0, frozenset(), f"it cannot be listed: {error.strerror}")]
    found = [
        BundleFolder(each, variant.name, int(each.name) if NUMBER.fullmatch(each.name) else 0, stamp_of(each))
        for each in folders
    ]
    return sorted(found, key=lambda one: (-one.version, one.folder.name))
