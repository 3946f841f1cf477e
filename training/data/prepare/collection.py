"""A collection of interference: files of one kind, and which of them must stay together when they are shared out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from speakerlens.training.data.manifest import Kind
from speakerlens.training.data.prepare.pieces import SPLITS, Piece, Shares, Source, audio_files, split_randomly
from speakerlens.training.errors import UserError

_STEM = 50
"""How many characters of a file's name go into that of what it is converted to: 255 bytes hold them all in UTF-8."""


@dataclass(frozen=True)
class Collection:
    """Files of one kind of interference.

    Attributes:
        name: what it is called, which seeds how it is shared out; what is converted goes into a folder of this name.
        where: the folder it is from.
        kind: of all its files.
        groups: absolute paths by group. A group is in one split only: a file by itself, or all of a room.
        member: what a group is, for messages.
        named: whether the names of the groups are those of talkers.
    """

    name: str
    where: Path
    kind: Kind
    groups: Mapping[str, tuple[Path, ...]]
    member: str = "audio file"
    named: bool = False

    @property
    def paths(self) -> list[Path]:
        """All files, group by group."""
        return [path for paths in self.groups.values() for path in paths]


def one_by_one(name: str, folder: Path, kind: Kind) -> Collection:
    """Take all audio files in a folder, at any depth, each of them a group by itself."""
    paths = audio_files(folder)
    return Collection(name, folder, kind, {path.relative_to(folder.resolve()).as_posix(): (path,) for path in paths})


def collection_pieces(collection: Collection, sources: Mapping[Path, Source], shares: Shares) -> list[Piece]:
    """Share out those files of a collection that are in `sources`; a group that has none there is left out.

    Raises:
        UserError: fewer than three groups are left, too few for three splits.
    """
    groups = {name: [sources[path] for path in paths if path in sources] for name, paths in collection.groups.items()}
    groups = {name: members for name, members in groups.items() if members}
    if len(groups) < len(SPLITS):
        lost = f" that can be used, of {len(collection.groups)}" if len(groups) < len(collection.groups) else ""
        raise UserError(
            f"{collection.where}: needs at least 3 {collection.member}s, one each for train, dev and test, "
            f"and has {len(groups)}{lost}"
        )
    pieces: list[Piece] = []
    parts = split_randomly(list(groups.items()), [0.0] * len(groups), collection.name, shares)
    for split, part in parts.items():
        members = [(name, source) for name, group in part for source in group]
        for index, (name, source) in enumerate(members):
            target = Path(collection.name) / f"{split}-{index:04d}-{source.path.stem[:_STEM]}.flac"
            speaker = name if collection.named else None
            pieces.append(Piece((source,), target, collection.kind, split, speaker))
    return pieces
