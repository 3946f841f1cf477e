"""The speakers of a folder: their files by session, and who of them is held out of the known speakers."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speakerlens.training.data.manifest import SPLITS, Split
from speakerlens.training.data.prepare.folder_settings import FolderSettings
from speakerlens.training.data.prepare.grouping import by_session, compiled
from speakerlens.training.data.prepare.inspection import is_left_over, list_files, passed_over
from speakerlens.training.data.prepare.survey import Survey, is_utf8, some
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.predictions import FEWEST_OUT_OF_SET

FEWEST_SPEAKERS = 12
"""With fewer speakers none is held out by default."""
OUTSIDERS_SHARE, MOST_OUTSIDERS = 0.3, 60


@dataclass(frozen=True)
class Speaker:
    """A speaker's folder, and the files in it by session; `outside` is the split of one who is held out, else None."""

    folder: Path
    sessions: Mapping[str, Sequence[Path]]
    outside: Split | None

    @property
    def name(self) -> str:
        """The speaker's name."""
        return self.folder.name

    @property
    def paths(self) -> list[Path]:
        """All files, session by session."""
        return [path for paths in self.sessions.values() for path in paths]


def list_speakers(settings: FolderSettings, survey: Survey) -> list[Speaker]:
    """List the speakers and their files; raise UserError if some have too few."""
    pattern = compiled(settings.group_by, "--group-by")
    folders = _speaker_folders(settings)
    outsiders = _draw_outsiders([folder.name for folder in folders], settings)
    speakers = []
    others: Counter[str] = Counter()
    for folder in folders:
        listing = list_files(folder)
        others += listing.others
        speakers.append(Speaker(folder, by_session(folder, listing.audio, pattern), outsiders.get(folder.name)))
    if settings.outsiders is None:
        survey.note(_held_out(outsiders))
    if others:
        survey.note(f"{settings.speech}: passed over, by suffix: {passed_over(others)}")
    if few := [
        f"{speaker.name} ({len(speaker.paths)})" for speaker in speakers if len(speaker.paths) < _needed(speaker)
    ]:
        hint = f" (passed over: {passed_over(others)})" if others else ""
        raise UserError(
            f"{settings.speech}: every speaker needs at least 3 audio files, one each for train, dev and test, and "
            f"every outsider one; fewer: {some(few)}{hint}"
        )
    return speakers


def _needed(speaker: Speaker) -> int:
    return 1 if speaker.outside else len(SPLITS)


def _speaker_folders(settings: FolderSettings) -> list[Path]:
    folders = sorted(path for path in settings.speech.iterdir() if path.is_dir() and not is_left_over(path.name))
    if len(folders) - (settings.outsiders or 0) < 2:
        beside = f" beside the {settings.outsiders} outsiders" if settings.outsiders else ""
        raise UserError(
            f"{settings.speech}: must hold a folder for each of at least 2 speakers{beside}, "
            f"not {len(folders)} folder(s)"
        )
    if unfit := [repr(folder.name) for folder in folders if not is_utf8(folder.name)]:
        raise UserError(f"{settings.speech}: speaker folder {some(unfit)}: the name is not UTF-8; rename it")
    return folders


def _draw_outsiders(names: Sequence[str], settings: FolderSettings) -> dict[str, Split]:
    """Draw the outsiders and assign them to splits.

    Dev and test come first, until calibration has what it needs there; the rest go to train, dev and test in turn.
    """
    rng = np.random.default_rng([settings.shares.seed, *b"outsiders"])
    count = default_outsiders(len(names)) if settings.outsiders is None else settings.outsiders
    drawn = rng.permutation(len(names))[:count]
    calibrating: list[Split] = ["dev", "test"] * FEWEST_OUT_OF_SET if count >= 2 * FEWEST_OUT_OF_SET else []
    order = [*calibrating, *itertools.islice(itertools.cycle(SPLITS), max(0, count - len(calibrating)))]
    return {names[index]: split for index, split in zip(drawn, order, strict=True)}


def _held_out(outsiders: Mapping[str, Split]) -> str:
    if not outsiders:
        return (
            f"no speaker is held out, as there are fewer than {FEWEST_SPEAKERS}: the threshold for unknown speakers "
            "will be optimistic; --outsiders N holds N of them out"
        )
    names = some(sorted(outsiders))
    return f"{len(outsiders)} speakers are held out for the threshold (--outsiders 0 holds out none): {names}"


def default_outsiders(speakers: int) -> int:
    """Return how many of so many speakers are held out: about 30 %, or none where that leaves calibration too few."""
    if speakers < FEWEST_SPEAKERS:
        return 0
    return min(MOST_OUTSIDERS, max(2 * FEWEST_OUT_OF_SET, round(OUTSIDERS_SHARE * speakers)))
