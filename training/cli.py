"""The command line of training: prepare a corpus, train variants, evaluate and compare them."""

import errno
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from speakerlens.arguments import ArgumentParser
from speakerlens.training.errors import UserError


class Command(NamedTuple):
    """A subcommand: the module of this package whose `add_arguments` describes it, and a line of help."""

    module: str
    about: str


COMMANDS = {
    "prepare": Command("data.prepare.cli", "make a corpus: the demo's voices, or folders of your own recordings"),
    "pack": Command("data.prepare.pack", "copy a corpus to one memory-mapped file"),
    "fit": Command("fit", "train one variant"),
    "train": Command("fit", "the same as fit"),
    "evaluate": Command("evaluation.comparison.evaluate", "measure trained variants under interference"),
    "import-wespeaker": Command("import_wespeaker", "import a WeSpeaker ResNet as a run"),
    "study": Command("study.cli", "train, evaluate and compare all variants over several seeds"),
}

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "array dimensions exceeded", "Storage size")


def main(arguments: Sequence[str] | None = None, program: str = "python -m training") -> int:
    """Run a command line and return the exit code: 2 for wrong input, explained by one line on stderr.

    Args:
        arguments: the words after `program`; None: those of the process.
        program: how the command was called, for usage lines and errors.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        chosen = next((word for word in arguments if word in COMMANDS), None)
        parsed = _parser(program, chosen).parse_args(arguments)
        code: int = parsed.run(parsed)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sys.stderr.write(f"error: {error.filename or 'a file'}: {error.strerror}; make room for it and run again\n")
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch has RuntimeError for it, of the CPU's memory without a class of its own.
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        line = " ".join(str(error).split())[:300]
        sys.stderr.write(f"error: too little memory for this network, batch or corpus: {line}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return code


def _parser(program: str, chosen: str | None) -> ArgumentParser:
    """Describe the command line; only the chosen command is imported, so that help is quick."""
    parser = ArgumentParser(prog=program, description=__doc__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        of_command = subparsers.add_parser(name, help=command.about)
        if name == chosen:
            _import(command.module).add_arguments(of_command)
    return parser


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"speakerlens.training.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "speakerlens":
            raise
        raise UserError(f"{error.name} is not installed; training needs pip install 'speakerlens[train]'") from error
