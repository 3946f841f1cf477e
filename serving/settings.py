"""Where the configuration comes from: flags win over environment variables, those over the file, that over defaults.

`--config FILE` is TOML with the fields of `Config` as keys; `--print-config` writes one, with the values in force.
"""

import argparse
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerlens.arguments import ArgumentParser, suggestion
from speakerlens.serving.config import PREFIX, Config, ConfigError, Option, check, options

PROGRAM = "python -m serving"
# The client's own variables: SPEAKERLENS_CLIENT_SERVER is not for the server.
CLIENT_PREFIX = PREFIX + "CLIENT_"
# What Kubernetes writes: beside a Service named speakerlens, every container finds SPEAKERLENS_PORT=tcp://10.0.0.1:50051
# in its environment, which says where that Service is, not where this server is to listen.
LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NUMBERS = {int: "whole number", float: "number"}
METAVARS = {int: "N", float: "SECONDS", str: "NAME", Path: "PATH"}


@dataclass(frozen=True)
class Setting:
    """A value and where it came from: a flag, a variable, a line of a file, or `default`."""

    value: Any
    origin: str


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ, program: str = PROGRAM) -> Config:
    """Reads flags, then environment variables, then the file, then defaults.

    A wrong value ends the process with status 2 and a line that names the flag, and the variable or the file's line if
    it came from there; `--print-config` and `--help` end it with status 0.
    """
    known = options()
    given = _arguments(known.values(), argv, program)
    try:
        settings = gather(known, given, environ)
        config = Config(**{name: setting.value for name, setting in settings.items()})
        check(config)
    except ConfigError as error:
        sys.stderr.write(f"error: {error} (see {program} --help)\n")
        raise SystemExit(2) from None
    if given["print_config"]:
        sys.stdout.write(document(settings))
        raise SystemExit(0)
    return config


def gather(known: Mapping[str, Option], given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Setting]:
    """Every option's value and origin.

    Args:
        known: the schema.
        given: what the flags say by name, None where one is not given; `config` is the file's path.
        environ: the environment.

    Raises:
        ConfigError: a value is wrong, or a key or variable is unknown.
    """
    variables = _variables(known, environ)
    path = environ.get(PREFIX + "CONFIG") or None if given["config"] is None else given["config"]
    lines = {} if path is None else _read_file(known, Path(path))
    settings = {}
    for name, option in known.items():
        if given[name] is not None:
            flag = option.flag.replace("--", "--no-", 1) if given[name] is False else option.flag
            settings[name] = Setting(_value(option, given[name], ""), flag)
        elif name in variables:
            origin = f" (from {option.variable})"
            settings[name] = Setting(_value(option, variables[name], origin), option.variable)
        else:
            settings[name] = lines.get(name, Setting(option.default, "default"))
    return settings


def document(settings: Mapping[str, Setting]) -> str:
    """The settings as a configuration file, each with its origin in a comment; an unset option is all comment."""
    lines = []
    for name, setting in settings.items():
        text = f"# {name} is not set" if setting.value is None else f"{name} = {_toml(setting.value)}"
        lines.append(f"{text}  # {setting.origin}")
    return "\n".join(lines) + "\n"


def _arguments(known: Iterable[Option], argv: Sequence[str], program: str) -> dict[str, Any]:
    parser = ArgumentParser(
        prog=program,
        description="Serves speaker identification with saliency over gRPC, and Prometheus metrics over HTTP.",
        epilog=f"Each option can also be set by an environment variable, as --max-batch by {PREFIX}MAX_BATCH, and in "
        "the file, as max_batch. A flag wins over the environment, the environment over the file.",
    )
    parser.add_argument("--config", metavar="FILE", help=f"read options from a TOML file (or {PREFIX}CONFIG)")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the options in force as such a file, each with where it comes from, and end",
    )
    for option in known:
        _add(parser, option)
    return vars(parser.parse_args(argv))


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    default = ",".join(map(str, option.default)) if option.many else option.default
    about = f"{option.help} (default: {default})"
    if option.kind is bool:
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=None, help=about)
        return
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.unit or METAVARS[option.kind]
    parser.add_argument(option.flag, metavar=metavar, help=about)


def _variables(known: Mapping[str, Option], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set, by the option's name; an empty one is no value."""
    names = {option.variable: name for name, option in known.items()}
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(CLIENT_PREFIX) or not text:
            continue
        if LINK.search(variable) or (variable.endswith("_PORT") and LINK_VALUE.match(text)):
            continue
        if variable in names:
            found[names[variable]] = text
        elif variable != PREFIX + "CONFIG":
            raise ConfigError(f"there is no variable {variable}{suggestion(variable, names)}")
    return found


def _read_file(known: Mapping[str, Option], path: Path) -> dict[str, Setting]:
    try:
        text = path.read_text(encoding="utf-8")
        entries = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path}: not TOML: {error}") from error
    found = {}
    for key, value in entries.items():
        place = f"{path}, line {_line(text, key)}"
        if key not in known:
            raise ConfigError(f"--config {place}: there is no option {key!r}{suggestion(key, known)}")
        if isinstance(value, str) and (known[key].many or known[key].kind not in (str, Path)):
            raise ConfigError(f"--config {place}: {key} is no text; write it without quotes")
        found[key] = Setting(_value(known[key], value, f" ({place})"), place)
    return found


def _line(text: str, key: str) -> int:
    """The line, from 1, on which a key of the file is set; tomllib does not say."""
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[\].=]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _value(option: Option, raw: Any, origin: str) -> Any:
    """A flag's or variable's text, or a value of the file, as the option's type.

    Raises:
        ConfigError: it is of another type, or out of bounds.
    """
    if not option.many:
        return _one(option, raw, origin)
    values = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else raw
    if not isinstance(values, list):
        raise ConfigError(f"{option.flag} takes a list, not {raw!r}{origin}")
    return tuple(_one(option, value, origin) for value in values)


def _one(option: Option, raw: Any, origin: str) -> Any:
    if option.kind is bool:
        return _boolean(option, raw, origin)
    if option.kind in NUMBERS:
        return _number(option, raw, origin)
    if not isinstance(raw, str):
        raise ConfigError(f"{option.flag} takes text, not {raw!r}{origin}")
    if option.choices and raw not in option.choices:
        raise ConfigError(f"{option.flag} is one of {', '.join(option.choices)}, not {raw!r}{origin}")
    if not raw:
        raise ConfigError(f"{option.flag} is empty{origin}")
    return option.kind(raw)


def _boolean(option: Option, raw: Any, origin: str) -> bool:
    """A flag and the file bring a truth value; a variable brings a word."""
    value = BOOLEANS.get(raw.lower()) if isinstance(raw, str) else raw
    if not isinstance(value, bool):
        raise ConfigError(f"{option.flag} is true or false, not {raw!r}{origin}")
    return value


def _number(option: Option, raw: Any, origin: str) -> float:
    low, high = option.limits
    # The file's true is no 1, and its 2.5 no whole number.
    taken = (str, int) if option.kind is int else (str, int, float)
    try:
        number: float = option.kind(raw if isinstance(raw, taken) and not isinstance(raw, bool) else "")
    except ValueError:
        raise ConfigError(f"{option.flag} takes a {NUMBERS[option.kind]}, not {raw!r}{origin}") from None
    if not low <= number <= high:
        raise ConfigError(f"{option.flag} is from {low:g} to {high:g}, not {raw}{origin}")
    return number


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    # JSON's strings are TOML's, but for the last control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
