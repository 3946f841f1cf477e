"""The command `speakerlens`: calls a server, and starts the server, the training and the export.

Only the module of the chosen command is imported, so that `speakerlens --help` is quick and an installation without an
extra has every command that does not need it.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from speakerlens.arguments import ArgumentParser, suggestion


class ClientCommand(NamedTuple):
    """A command that calls a server: `add_NAME` of its module adds its options and `run`."""

    about: str
    module: str
    usage: str
    examples: Sequence[str]


class PartCommand(NamedTuple):
    """A command of another part: the `main` of its module runs it."""

    about: str
    module: str
    extra: str
    words: Sequence[str] = ()
    """What the words of the command line are appended to."""
    program: str = "speakerlens"
    """How the part calls itself in usage lines and errors."""


CLIENT = {
    "identify": ClientCommand(
        "identify the speaker of each file, with saliency maps on request",
        "identify",
        "FILE [FILE ...]",
        ("identify call.flac", "identify call.flac --variants act-da --plot why.png", "identify *.wav --json"),
    ),
    "search": ClientCommand(
        "find out which enrolled speaker is speaking in each file, or none",
        "search",
        "FILE [FILE ...]",
        ("search call.flac", "search call.flac --speakers anna bo --plot why.png", "search *.wav --json"),
    ),
    "listen": ClientCommand(
        "identify the speakers of live audio, or name the enrolled ones, window by window",
        "listen",
        "FILE",
        ("listen call.flac", "listen - --rate 16000  < samples.pcm", "listen call.flac --search"),
    ),
    "embed": ClientCommand(
        "print the embeddings of each file", "voices", "FILE [FILE ...]", ("embed call.flac --json",)
    ),
    "verify": ClientCommand(
        "compare the speakers of two files, or of a file and an enrolment",
        "voices",
        "AUDIO (OTHER | --enrolled NAME)",
        ("verify call.flac other.flac --variant act-da", "verify call.flac --enrolled anna --plot why.png"),
    ),
    "enroll": ClientCommand(
        "enrol a speaker for verify and search, replacing one of the same name",
        "speakers",
        "NAME AUDIO [AUDIO ...]",
        ("enroll anna first.flac second.flac", "enroll anna third.flac --add"),
    ),
    "speakers": ClientCommand("list the enrolled speakers", "speakers", "", ("speakers --json",)),
    "forget": ClientCommand("remove an enrolled speaker, from all models", "speakers", "NAME", ("forget anna",)),
    "gallery": ClientCommand(
        "write the enrolled speakers into a file, read them from one, or move them to new models",
        "gallery",
        "(export FILE | import FILE | migrate)",
        ("gallery export speakers.jsonl", "gallery import speakers.jsonl", "gallery migrate --variants act-da"),
    ),
    "models": ClientCommand(
        "list the loaded models, their speakers and the server's limits",
        "status",
        "",
        ("models", "models --json", "models add DOWNLOADED --bundles bundles"),
    ),
    "health": ClientCommand(
        "check whether the server is ready (exit code 0) or not (5)",
        "status",
        "",
        ("health --server speakers.example.org:50051 --tls",),
    ),
}

_TRAINING = "speakerlens.training.cli"
PARTS = {
    "demo": PartCommand(
        "serve three demo models, and a page in the browser to try them; no training",
        "speakerlens.demo",
        "cpu,http",
        program="speakerlens demo",
    ),
    "serve": PartCommand(
        "serve model bundles over gRPC and HTTP", "speakerlens.serving.__main__", "cpu", program="speakerlens serve"
    ),
    "score": PartCommand(
        "score an archive of recordings into one table, without a server",
        "speakerlens.scoring.cli",
        "cpu",
        program="speakerlens score",
    ),
    "bundles": PartCommand(
        "fetch model bundles over HTTPS or from S3", "speakerlens.cli.bundles", "cpu", program="speakerlens bundles"
    ),
    "prepare": PartCommand("make a corpus: demo voices, or folders of recordings", _TRAINING, "train", ("prepare",)),
    "pack": PartCommand("copy a corpus to one memory-mapped file", _TRAINING, "train", ("pack",)),
    "train": PartCommand("train one variant", _TRAINING, "train", ("train",)),
    "evaluate": PartCommand("measure trained variants under interference", _TRAINING, "train", ("evaluate",)),
    "study": PartCommand("train, evaluate and compare all variants over several seeds", _TRAINING, "train", ("study",)),
    "import-wespeaker": PartCommand(
        "make a run of a ResNet of WeSpeaker or pyannote", _TRAINING, "train", ("import-wespeaker",)
    ),
    "export": PartCommand(
        "make verified model bundles of training runs",
        "speakerlens.export.cli",
        "train",
        program="speakerlens export",
    ),
}

# Of two words, where the first alone is a command that calls a server.
NESTED = {
    "models add": PartCommand(
        "add a downloaded network, a run or a bundle to a server's folder",
        "speakerlens.export.add",
        "train",
        program="speakerlens models add",
    )
}

EXAMPLES = """examples:
  speakerlens demo
  speakerlens serve --bundles bundles
  speakerlens identify call.flac --plot why.png
  source <(speakerlens completion bash)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    name, rest = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    both = " ".join(words[:2])
    if both in NESTED:
        return _run_part(both, NESTED[both], rest[1:])
    if rest[:1] and not rest[0].startswith("-") and any(each.startswith(f"{name} ") for each in NESTED):
        return _without_command(both, words)
    if name in CLIENT:
        return _call_server(parse(words))
    if name in PARTS:
        return _run_part(name, PARTS[name], rest)
    if name == "completion":
        from speakerlens.cli.completion import main as completion  # noqa: PLC0415  (imported only where needed)

        commands = {name: about for group in _groups().values() for name, about in group.items() if name not in NESTED}
        # Help of training and export imports torch, which takes seconds: their flags are not completed.
        return completion(rest, commands, (*CLIENT, "serve"), main)
    return _without_command(name, words)


def _without_command(name: str | None, words: Sequence[str]) -> NoReturn:
    parser = _overview()
    if name is not None:
        parser.error(f"there is no command {name!r}{suggestion(name, [*CLIENT, *PARTS, *NESTED, 'completion'])}")
    parser.parse_args(words)  # --help and --version exit here
    parser.error("a command is missing")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a command that calls a server; `run` of the result is its function."""
    from speakerlens.cli.options import CommandParser  # noqa: PLC0415  (needs gRPC)

    command = CLIENT[words[0]]
    parser = CommandParser(words[0], command.about, command.usage, command.examples)
    getattr(importlib.import_module(f"speakerlens.cli.{command.module}"), f"add_{words[0]}")(parser)
    parser.add_connection()
    return parser.parse_args(words[1:])


def _call_server(arguments: argparse.Namespace) -> int:
    from speakerlens.cli.failures import CommandError, Exit, call_error, complain  # noqa: PLC0415  (need gRPC)
    from speakerlens.cli.files import print_json  # noqa: PLC0415
    from speakerlens.errors import ClientError  # noqa: PLC0415

    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except (CommandError, ClientError) as error:
        failure = call_error(error) if isinstance(error, ClientError) else error
        complain(str(failure))
        if arguments.json and failure.exit_code != Exit.USAGE:
            print_json(failure.document())
        return failure.exit_code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, is done; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code


def _run_part(name: str, command: PartCommand, words: Sequence[str]) -> int:
    try:
        module = importlib.import_module(command.module)
        code: int = module.main([*command.words, *words], program=command.program)
    except ModuleNotFoundError as error:
        # The server's image has no folder `training`: then that is what is missing.
        missing = (error.name or "").removeprefix("speakerlens.").partition(".")[0]
        if missing == "speakerlens":
            raise
        sentence = f"speakerlens {name} needs pip install 'speakerlens[{command.extra}]' (no module {missing})"
        sys.stderr.write(f"error: {sentence}\n")
        return 2
    return code


def _groups() -> dict[str, dict[str, str]]:
    """Return what each command does, by its name, in groups by their titles."""
    return {
        "call a server": {name: command.about for name, command in CLIENT.items()},
        "run a server and make its models": {name: command.about for name, command in (PARTS | NESTED).items()},
        "other": {"completion": "print a completion script: bash, zsh or fish"},
    }


def _overview() -> ArgumentParser:
    """Return the parser of what comes without a command; its help lists all commands."""
    listed = "\n\n".join(_group(title, commands) for title, commands in _groups().items())
    return ArgumentParser(
        prog="speakerlens",
        usage="speakerlens COMMAND [OPTIONS]",
        description=f"Speaker identification with saliency maps.\n\n{listed}",
        epilog=f"{EXAMPLES}\n\n`speakerlens COMMAND --help` has the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _group(title: str, commands: Mapping[str, str]) -> str:
    return f"{title}:\n" + "\n".join(f"  {name:18}{about}" for name, about in commands.items())
