"""MUSAN (Snyder, Chen and Povey, arXiv 1510.08484) as it unpacks: noise, music and speech, by where they are from.

Its speech is read by volunteers and spoken in hearings of the United States' government: talkers other than anybody's
speakers. A file counts as one talker; who talks in two of them is not told.
"""

from pathlib import Path

from speakerlens.training.data.manifest import Kind
from speakerlens.training.data.prepare.collection import Collection
from speakerlens.training.data.prepare.pieces import audio_files
from speakerlens.training.errors import UserError

_KINDS: tuple[Kind, ...] = ("noise", "music", "speech")


def musan(folder: Path) -> list[Collection]:
    """Find the noise, the music and the speech of MUSAN in its folder, or in the folder that it was unpacked in.

    Raises:
        UserError: one of the three is not there.
    """
    root = folder / "musan" if (folder / "musan").is_dir() else folder
    if missing := [kind for kind in _KINDS if not (root / kind).is_dir()]:
        raise UserError(
            f"{folder}: is not MUSAN as it unpacks, a folder with noise, music and speech in it: there is no "
            f"{' and no '.join(missing)}"
        )
    return [_collection(root / kind, kind) for kind in _KINDS]


def _collection(folder: Path, kind: Kind) -> Collection:
    # By the whole path below the folder: two sources may each have a file of the same name.
    groups = {f"musan-{path.relative_to(folder.resolve()).as_posix()}": (path,) for path in audio_files(folder)}
    return Collection(f"musan-{kind}", folder, kind, groups, named=kind == "speech")
