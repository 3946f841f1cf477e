"""The options of commands that explain: which maps, and the files they go to."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from speakerlens.cli import outputs
from speakerlens.cli.failures import CommandError, Exit
from speakerlens.cli.shown import Shown
from speakerlens.request import STAGES, Explain, StageName


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    parser.add_argument("--explain", action="store_true", help="ask for saliency maps; the options below imply it")
    parser.add_argument(
        "--stages", metavar="STAGES", help=f"maps to ask for, with commas, of {', '.join(STAGES)} (default: fused)"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="OUT.png",
        help="draw waveform, log-mel and every map (.png, .svg or .pdf); "
        "of several files the first becomes OUT-1.png, the second OUT-2.png",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="OUT.npz",
        help="write maps, log-mel and axes as numpy arrays, named VARIANT@VERSION/STAGE; numbered as plots are",
    )


def asked(arguments: argparse.Namespace, target: str | None = None) -> bool | Explain:
    """Return what the options ask of the maps; False where none are wanted."""
    if not (arguments.explain or arguments.stages or target or arguments.plot or arguments.save):
        return False
    stages = cast(Sequence[StageName], (arguments.stages or "fused").split(","))
    return Explain(stages=stages, target=target)


class Writers:
    """Writes the files that `--plot` and `--save` ask for.

    Args:
        arguments: of the command.
        count: how many utterances there are: the files of several are numbered.

    Raises:
        CommandError: the paths or the installation do not allow it.
    """

    def __init__(self, arguments: argparse.Namespace, count: int) -> None:
        self._count = count
        self._writers: dict[str, tuple[Path, outputs.Write]] = {}
        if arguments.plot:
            self._writers["plot"] = (arguments.plot, outputs.plots(arguments.plot))
        if arguments.save:
            self._writers["arrays"] = (arguments.save, outputs.arrays(arguments.save))

    def write(self, number: int, file: str, content: bytes, shown: Sequence[Shown]) -> dict[str, Path]:
        """Write what belongs to the utterance of this number, from 1; return the paths by kind.

        Raises:
            CommandError: a file cannot be written.
        """
        written = {}
        for kind, (path, write) in self._writers.items():
            target = written[kind] = outputs.numbered(path, number, self._count)
            try:
                write(target, file, content, shown)
            except OSError as error:
                sentence = f"cannot write {target}: {error.strerror or error}"
                raise CommandError(Exit.FAILURE, "UNWRITABLE", sentence) from error
        return written
