"""Collections of interference, and which of their files must stay in one split.

MUSAN (Snyder, Chen and Povey, arXiv 1510.08484) holds noise, music and speech. A speech file counts as one talker, as
MUSAN does not list its talkers. RIRS_NOISES (Ko et al., ICASSP 2017; OpenSLR 28) holds impulse responses and noises:
`simulated_rirs` has responses only; in `real_rirs_isotropic_noises` the file `rir_list` names the responses; the noises
of `pointsource_noises` are MUSAN's.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speakerlens.training.data.manifest import SPLITS, Kind
from speakerlens.training.data.prepare.grouping import by_recording, joined
from speakerlens.training.data.prepare.inspection import Source, list_files
from speakerlens.training.data.prepare.pieces import Piece, Shares, split_randomly
from speakerlens.training.errors import UserError

_STEM = 50
"""Characters of a source file's name that its converted file keeps; in UTF-8 they fit into 255 bytes."""


@dataclass(frozen=True)
class Collection:
    """Files of one kind of interference.

    Attributes:
        name: seeds the assignment to splits; converted files go into a folder of this name.
        where: source folder.
        kind: of all its files.
        groups: absolute paths by group; the files of a group (one file, or all of a room) stay in one split.
        member: what messages call a group.
        named: whether group names are talkers' names.
        others: files that are not audio by their suffix, by suffix.
    """

    name: str
    where: Path
    kind: Kind
    groups: Mapping[str, tuple[Path, ...]]
    member: str = "audio file"
    named: bool = False
    others: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> list[Path]:
        """All files, ordered by group."""
        return [path for paths in self.groups.values() for path in paths]

    @property
    def channel(self) -> int | None:
        """The channel to use; None for the mean of all.

        Channels of an impulse response are different microphones; their mean is not the response of a room.
        """
        return 0 if self.kind == "rir" else None


def recordings(name: str, folder: Path, kind: Kind, pattern: re.Pattern[str] | None = None) -> Collection:
    """Return all audio files in a folder, at any depth, grouped by the recording that they were cut from.

    Raises:
        UserError: `pattern`, which finds the recording in a file's path, matches none of some file.
    """
    listing = list_files(folder)
    groups = by_recording(folder, listing.audio, pattern)
    member = "audio file" if len(groups) == len(listing.audio) else "recording"
    return Collection(name, folder, kind, groups, member, others=listing.others)


def collection_pieces(collection: Collection, sources: Mapping[Path, Source], shares: Shares) -> list[Piece]:
    """Assign the files of a collection that are in `sources` to splits, group by group.

    Groups with content in common stay together.

    Raises:
        UserError: fewer than three groups have files in `sources`.
    """
    groups = {name: [sources[path] for path in paths if path in sources] for name, paths in collection.groups.items()}
    names = {source.path: name for name, members in groups.items() for source in members}
    groups = joined({name: members for name, members in groups.items() if members})
    if len(groups) < len(SPLITS):
        lost = f" that can be used, of {len(collection.groups)}" if len(groups) < len(collection.groups) else ""
        raise UserError(
            f"{collection.where}: needs at least 3 {collection.member}s, one each for train, dev and test, "
            f"and has {len(groups)}{lost}"
        )
    pieces: list[Piece] = []
    for split, part in split_randomly(list(groups.values()), collection.name, shares.seed, shares.wanted).items():
        for index, source in enumerate(source for group in part for source in group):
            target = Path(collection.name) / f"{split}-{index:04d}-{source.path.stem[:_STEM]}.flac"
            speaker = names[source.path] if collection.named else None
            pieces.append(Piece((source,), target, collection.kind, split, speaker))
    return pieces


_KINDS: tuple[Kind, ...] = ("noise", "music", "speech")


def musan(folder: Path) -> list[Collection]:
    """Return the noise, music and speech of MUSAN; `folder` is MUSAN itself or the folder it was unpacked in.

    Raises:
        UserError: one of the three is missing.
    """
    root = folder / "musan" if (folder / "musan").is_dir() else folder
    if missing := [kind for kind in _KINDS if not (root / kind).is_dir()]:
        raise UserError(
            f"{folder}: is not an unpacked MUSAN, a folder with noise, music and speech: there is no "
            f"{' and no '.join(missing)}"
        )
    return [_collection(root / kind, kind) for kind in _KINDS]


def _collection(folder: Path, kind: Kind) -> Collection:
    listing = list_files(folder)
    # Keyed by the path below the folder, as two sources may have files of the same name.
    groups = {f"musan-{path.relative_to(folder.resolve()).as_posix()}": (path,) for path in listing.audio}
    return Collection(f"musan-{kind}", folder, kind, groups, named=kind == "speech", others=listing.others)


_REAL = "real_rirs_isotropic_noises"
_ROOMS = (
    re.compile(r"(?P<base>RVB2014)_type\d_rir_(?P<room>[a-z]+\d+)_"),
    re.compile(r"(?P<base>RWCP)_type\d_rir_(?:circle|cirline)_(?P<room>[a-z]+\d*[a-z]?)_"),
    re.compile(r"(?P<base>air)_type\d_air_(?:binaural|phone_bt|phone)_(?P<room>aula_carolina|[a-z]+)"),
)
"""File names as in Kaldi's ASpIRE recipe: database, room, then positions and microphones."""


def rirs(folder: Path) -> Collection:
    """Return the impulse responses of RIRS_NOISES, grouped by room; `folder` is it or the folder it was unpacked in.

    Raises:
        UserError: there are none, or a listed file is missing.
    """
    root = folder / "RIRS_NOISES" if (folder / "RIRS_NOISES").is_dir() else folder
    simulated = root / "simulated_rirs"
    if not simulated.is_dir() and not (root / _REAL).is_dir():
        raise UserError(
            f"{folder}: is not an unpacked RIRS_NOISES, a folder with simulated_rirs and {_REAL}: both are missing"
        )
    rooms: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(simulated).audio:
        rooms[path.parent.relative_to(simulated.resolve()).as_posix()].append(path)
    for path in _real_responses(root / _REAL):
        rooms[room_of(path.name)].append(path)
    return Collection("rirs", folder, "rir", {room: tuple(paths) for room, paths in rooms.items()}, member="room")


def room_of(name: str) -> str:
    """Return the room of a measured response from its file name; the database's name where the room is unknown."""
    for pattern in _ROOMS:
        if match := pattern.match(name):
            return f"{match['base']}/{match['room']}"
    return name.split("_", maxsplit=1)[0]


def _real_responses(folder: Path) -> list[Path]:
    """Return the files that `rir_list` names or, without that file, all without "noise" in their name.

    Selecting "rir" would lose the Aachen database, whose files begin with "air_type1_air".
    """
    paths = list_files(folder).audio
    listing = folder / "rir_list"
    if not listing.is_file():
        return [path for path in paths if "noise" not in path.name.lower()]
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    named = {Path(line.split()[-1]).name for line in lines if line.strip()}
    if missing := sorted(named - {path.name for path in paths}):
        raise UserError(
            f"{listing}: names {len(missing)} impulse responses that are missing, such as {missing[0]}; "
            "unpack RIRS_NOISES again"
        )
    return [path for path in paths if path.name in named]
