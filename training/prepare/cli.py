"""`python -m training prepare …`: make a corpus."""

import argparse
from pathlib import Path

from rich.console import Console

from training.prepare.demo import DemoSettings, prepare_demo
from training.prepare.demo_voices import SPEAKERS


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `prepare` with its commands to the command line."""
    parser = subparsers.add_parser("prepare", help="make a corpus: audio files and one manifest", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    defaults = DemoSettings()
    parser = commands.add_parser(
        "demo",
        help="synthesise the demo corpus",
        description="Synthesise speakers with espeak-ng, and noises, music and rooms. The same settings give the same "
        "corpus; one that is already there is reused.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the corpus")
    parser.add_argument(
        "--speakers",
        type=int,
        default=defaults.speakers,
        metavar="N",
        help=f"number of speakers, at most {len(SPEAKERS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--utterances-per-speaker",
        type=int,
        default=defaults.utterances_per_speaker,
        metavar="N",
        help="at least 3; about 70%% train, 10%% dev and 20%% test (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.seed, metavar="N", help="seed of all that is drawn (default: %(default)s)"
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    settings = DemoSettings(arguments.speakers, arguments.utterances_per_speaker, arguments.seed)
    prepare_demo(arguments.out, settings, Console())
    return 0
