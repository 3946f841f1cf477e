"""The argument parser of every command of the project; imports the standard library only.

A command's `main(arguments, program)` takes the words after the command, and how it was called (`python -m training`,
or `speakerlens`), which goes into `prog` and so into every usage line and error.
"""

import argparse
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from speakerlens._version import __version__


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with one-line errors, suggestions for what was mistyped, and `--version`.

    A wrong command line ends the process with status 2 and one line on stderr. Flags cannot be abbreviated. The
    parsers of subcommands are of the same class.
    """

    error_prefix = "error"

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)
        if self.add_help:
            text = "print the version and exit"
            self.add_argument("--version", action="version", version=f"speakerlens {__version__}", help=text)

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with status 2."""
        line = " ".join(message.split())
        sys.stderr.write(f"{self.error_prefix}: {line} (see {self.prog} --help)\n")
        raise SystemExit(2)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; refuse what is unknown here, where the flags to suggest are those of the subcommand."""
        if self._subparsers is None:  # before what is missing is told: a mistyped flag is missing, too
            self._refuse_unknown(_flags(sys.argv[1:] if args is None else args))
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse_unknown(word.partition("=")[0] for word in unknown if word.startswith("-") and word != "-")
            self.error(f"unexpected argument {unknown[0]!r}")
        return parsed, unknown

    def _refuse_unknown(self, flags: Iterable[str]) -> None:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for flag in flags:
            if flag not in self._option_string_actions:
                self.error(f"there is no flag {flag}{suggestion(flag, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # The choices of subcommands map a name to its parser.
        if isinstance(action.choices, Mapping) and value not in action.choices:
            self.error(f"there is no command {value!r}{suggestion(value, action.choices)}")
        super()._check_value(action, value)


def _flags(words: Sequence[str]) -> Iterator[str]:
    """Yield the long flags among the words of a command line."""
    for word in words:
        if word == "--":
            return
        if word.startswith("--"):
            yield word.partition("=")[0]


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for what `name` may be a misspelling of, or an empty string."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
