"""The settings of `prepare folder`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from speakerlens.training.data.manifest import SPLITS, Kind
from speakerlens.training.data.prepare.pieces import Shares
from speakerlens.training.errors import UserError

ALL = sys.maxsize
"""As many bad files as there are."""


@dataclass(frozen=True)
class FolderSettings:
    """What a corpus is made of.

    Attributes:
        speech: contains a folder per speaker, with audio files at any depth.
        interference: folders by kind, with audio files at any depth.
        musan, rirs: unpacked MUSAN and RIRS_NOISES.
        min_seconds: consecutive clips of a speaker are joined into utterances of at least this length.
        shares: shares of each speaker's files and of each kind of interference for dev and test, and the seed.
        outsiders: how many speakers, drawn by the seed, become interfering talkers and out-of-set speakers, each in
            one split only; 0 or at least 3. None for `default_outsiders`.
        channel: of every file of speech, from 0; None for the mean of all.
        group_by: regular expression that finds the session in a file's path below the speaker's folder; sessions stay
            in one split. None for one session per sub-folder.
        group_interference_by: the same for the recording of a file of interference. None for the usual names of cuts.
        allow_bad: how many files, at most, are left out as they cannot be used.
    """

    speech: Path
    interference: dict[Kind, Path] = field(default_factory=dict)
    musan: Path | None = None
    rirs: Path | None = None
    min_seconds: float = 0.0
    shares: Shares = field(default_factory=Shares)
    outsiders: int | None = None
    channel: int | None = None
    group_by: str | None = None
    group_interference_by: str | None = None
    allow_bad: int = 0


def check_settings(settings: FolderSettings) -> None:
    """Raise UserError naming the first setting that is wrong, or folder that is missing."""
    dev, test = settings.shares.dev, settings.shares.test
    if not (dev > 0 and test > 0 and dev + test < 1):
        raise UserError(f"--dev and --test must be above 0 and together below 1, not {dev:g} and {test:g}")
    if settings.min_seconds < 0:
        raise UserError(f"--min-seconds must be at least 0, not {settings.min_seconds:g}")
    if settings.shares.seed < 0:
        raise UserError(f"--seed must be at least 0, not {settings.shares.seed}")
    if settings.outsiders not in (None, 0) and settings.outsiders < len(SPLITS):
        raise UserError(
            f"--outsiders must be 0, or at least 3, one each for train, dev and test, not {settings.outsiders}"
        )
    for folder in (settings.speech, *settings.interference.values(), settings.musan, settings.rirs):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")
