"""RIRS_NOISES (Ko et al., ICASSP 2017; OpenSLR 28) as it unpacks: impulse responses, simulated and measured.

Not everything in it is one. `simulated_rirs` holds nothing else; `real_rirs_isotropic_noises` holds noises beside them,
and lists in `rir_list` which are responses; `pointsource_noises` are noises, taken from MUSAN.
"""

import re
from collections import defaultdict
from pathlib import Path

from speakerlens.training.data.prepare.collection import Collection
from speakerlens.training.data.prepare.pieces import audio_files
from speakerlens.training.errors import UserError

_REAL = "real_rirs_isotropic_noises"
_ROOMS = (
    re.compile(r"(?P<base>RVB2014)_type\d_rir_(?P<room>[a-z]+\d+)_"),
    re.compile(r"(?P<base>RWCP)_type\d_rir_(?:circle|cirline)_(?P<room>[a-z]+\d*[a-z]?)_"),
    re.compile(r"(?P<base>air)_type\d_air_(?:binaural|phone_bt|phone)_(?P<room>aula_carolina|[a-z]+)"),
)
"""Names as Kaldi's ASpIRE recipe gives them: data base, then room, then places and microphones."""


def rirs(folder: Path) -> Collection:
    """Find the impulse responses in RIRS_NOISES, or in the folder that it was unpacked in; a room is a group.

    Raises:
        UserError: there are none, or a listed one is not there.
    """
    root = folder / "RIRS_NOISES" if (folder / "RIRS_NOISES").is_dir() else folder
    simulated = root / "simulated_rirs"
    if not simulated.is_dir() and not (root / _REAL).is_dir():
        raise UserError(
            f"{folder}: is not RIRS_NOISES as it unpacks, a folder with simulated_rirs and {_REAL} in it: there is none"
        )
    rooms: dict[str, list[Path]] = defaultdict(list)
    for path in audio_files(simulated):
        rooms[path.parent.relative_to(simulated.resolve()).as_posix()].append(path)
    for path in _real_responses(root / _REAL):
        rooms[room_of(path.name)].append(path)
    return Collection("rirs", folder, "rir", {room: tuple(paths) for room, paths in rooms.items()}, member="room")


def room_of(name: str) -> str:
    """Tell a measured response's room from its file's name; where that is unknown, its whole data base is one room."""
    for pattern in _ROOMS:
        if match := pattern.match(name):
            return f"{match['base']}/{match['room']}"
    return name.split("_", maxsplit=1)[0]


def _real_responses(folder: Path) -> list[Path]:
    """Take the files that `rir_list` names, or without it all that are not called a noise.

    Asking for "rir" in the name would lose the Aachen data base, whose files begin with "air_type1_air".
    """
    paths = audio_files(folder)
    listing = folder / "rir_list"
    if not listing.is_file():
        return [path for path in paths if "noise" not in path.name.lower()]
    lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    named = {Path(line.split()[-1]).name for line in lines if line.strip()}
    if missing := sorted(named - {path.name for path in paths}):
        raise UserError(
            f"{listing}: names {len(missing)} impulse responses that are not beside it, such as {missing[0]}; "
            "unpack RIRS_NOISES again"
        )
    return [path for path in paths if path.name in named]
