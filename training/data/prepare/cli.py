"""Make a corpus: of synthetic voices, of your own recordings, or of VoxCeleb1."""

import argparse
from pathlib import Path

from rich.console import Console

from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Kind
from speakerlens.training.data.prepare.demo import DemoSettings, prepare_demo
from speakerlens.training.data.prepare.demo_voices import SPEAKERS
from speakerlens.training.data.prepare.folder import prepare_folder
from speakerlens.training.data.prepare.folder_settings import ALL, FolderSettings
from speakerlens.training.data.prepare.pieces import Shares
from speakerlens.training.data.prepare.rooms import RT60_RANGE, prepare_rooms
from speakerlens.training.data.prepare.speakers import FEWEST_SPEAKERS, OUTSIDERS_SHARE
from speakerlens.training.data.prepare.voxceleb1 import Voxceleb1Settings, prepare_voxceleb1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `prepare` and its subcommands."""
    parser.description = __doc__
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_folder(commands)
    _add_voxceleb1(commands)
    _add_rooms(commands)


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    defaults = DemoSettings()
    parser = commands.add_parser(
        "demo",
        help="synthesise the demo corpus",
        description="Synthesise speakers with espeak-ng, and noises, music and rooms. The same settings give the same "
        "corpus; an existing one is reused.",
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
        "--seed", type=int, default=defaults.seed, metavar="N", help="seed of all random choices (default: %(default)s)"
    )
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    settings = DemoSettings(arguments.speakers, arguments.utterances_per_speaker, arguments.seed)
    prepare_demo(arguments.out, settings, Console())
    return 0


_INTERFERENCE: dict[str, tuple[Kind, str]] = {
    "noise": ("noise", "noises"),
    "music": ("music", "music"),
    "interfering_speech": (
        "speech",
        "talkers for babble and for a second voice; never used as out-of-set speakers, as their identity is "
        "unknown: see --outsiders",
    ),
    "rir": ("rir", "room impulse responses"),
}


def _add_folder(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "folder",
        help="use your own recordings of speakers and interference",
        description="Assign every speaker's files, and the files of every kind of interference, to train, dev and test "
        "at random. 16 kHz mono WAV and FLAC files stay in place; all others (any audio format, any "
        "rate) are converted. An utterance must last at least "
        f"{SHORTEST_UTTERANCE:g} s.",
    )
    parser.add_argument("--speech", type=Path, required=True, metavar="DIR", help="contains a folder per speaker")
    for name, (_, what) in _INTERFERENCE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR", help=f"{what}; may be nested")
    _add_unpacked(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the corpus, missing or empty"
    )
    parser.add_argument(
        "--min-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="join consecutive clips of a speaker into utterances of at least this long (default: leave clips alone)",
    )
    parser.add_argument(
        "--outsiders",
        type=int,
        metavar="N",
        help="hold N speakers out, drawn by the seed, as out-of-set speakers and interfering talkers, each in one "
        "split only; 0 or at least 3, and 6 for the three in dev and in test that calibration needs (default: "
        f"{100 * OUTSIDERS_SHARE:g} %% of the speakers, none of fewer than {FEWEST_SPEAKERS})",
    )
    parser.add_argument(
        "--channel",
        type=_channel,
        default=None,
        metavar="N",
        help="use channel N of the speech, from 1; mix: the mean of all (default: mix)",
    )
    parser.add_argument(
        "--group-by",
        metavar="PATTERN",
        help="regular expression searched for in a file's path below the speaker's folder; what its first group, or "
        "all of it, matches names the session, which stays in one split (default: sub-folders are sessions)",
    )
    parser.add_argument(
        "--group-interference-by",
        metavar="PATTERN",
        help="the same for the recording that a file of interference was cut from (default: by the usual names of "
        "cuts, such as 1-187207-A.ogg and street-part2.wav)",
    )
    parser.add_argument(
        "--allow-bad",
        type=_bad_files,
        default=0,
        metavar="N|all",
        help="leave out up to N files that are damaged, cut short, too short or silent, and speakers who have too few "
        "without them; report.txt lists them (default: %(default)s)",
    )
    for name in ("dev", "test"):
        default = getattr(Shares, name)
        parser.add_argument(
            f"--{name}", type=float, default=default, metavar="SHARE", help=f"share for {name} (default: %(default)s)"
        )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random choices (default: %(default)s)"
    )
    parser.set_defaults(run=_run_folder)


def _channel(text: str) -> int | None:
    """Return a channel, from 0, of the argument that counts from 1; None for `mix`."""
    if text == "mix":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, or mix, not {text}")
    return int(text) - 1


def _bad_files(text: str) -> int:
    if text == "all":
        return ALL
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, or all, not {text}")
    return int(text)


def _add_unpacked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--musan", type=Path, metavar="DIR", help="unpacked MUSAN: noise, music and interfering speech")
    parser.add_argument(
        "--rirs", type=Path, metavar="DIR", help="unpacked RIRS_NOISES: simulated and measured impulse responses"
    )


def _run_folder(arguments: argparse.Namespace) -> int:
    given = {kind: getattr(arguments, name) for name, (kind, _) in _INTERFERENCE.items()}
    settings = FolderSettings(
        speech=arguments.speech,
        interference={kind: folder for kind, folder in given.items() if folder is not None},
        musan=arguments.musan,
        rirs=arguments.rirs,
        min_seconds=arguments.min_seconds,
        shares=Shares(arguments.dev, arguments.test, arguments.seed),
        outsiders=arguments.outsiders,
        channel=arguments.channel,
        group_by=arguments.group_by,
        group_interference_by=arguments.group_interference_by,
        allow_bad=arguments.allow_bad,
    )
    prepare_folder(arguments.out, settings, Console())
    return 0


def _add_voxceleb1(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "voxceleb1",
        help="use VoxCeleb1 with its identification split, in place",
        description="Check every file before anything is written, and list all that are missing, duplicate or unusable "
        "in report.txt. The files of MUSAN and the rooms of RIRS_NOISES are assigned to train, dev and test at random.",
    )
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="unpacked VoxCeleb1: wav, or dev/wav and test/wav"
    )
    parser.add_argument(
        "--split", type=Path, required=True, metavar="FILE", help="the identification split, iden_split.txt"
    )
    _add_unpacked(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the corpus, missing or empty"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out missing and unusable files, and speakers without training utterances",
    )
    parser.set_defaults(run=_run_voxceleb1)


def _run_voxceleb1(arguments: argparse.Namespace) -> int:
    settings = Voxceleb1Settings(
        arguments.root, arguments.split, arguments.musan, arguments.rirs, arguments.allow_missing
    )
    prepare_voxceleb1(arguments.out, settings, Console())
    return 0


def _add_rooms(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    low, high = RT60_RANGE
    parser = commands.add_parser(
        "rooms",
        help="simulate impulse responses of rooms",
        description="Simulate rooms of random size, with talker and microphone at random positions and a reverberation "
        f"time (RT60) from {low:g} to {high:g} s. Use the folder with `prepare folder --rir`.",
    )
    parser.add_argument("--count", type=int, required=True, metavar="N", help="number of rooms")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for them, missing or empty")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the rooms (default: %(default)s)")
    parser.set_defaults(run=_run_rooms)


def _run_rooms(arguments: argparse.Namespace) -> int:
    prepare_rooms(arguments.out, arguments.count, arguments.seed, Console())
    return 0
