"""The options of the command line that say which server, and how to reach it; each has an environment variable."""

import argparse
import os
from pathlib import Path

from speakerlens.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S
from speakerlens.cli.failures import usage_error
from speakerlens.client import SpeakerClient
from speakerlens.credentials import Tls

PREFIX = "SPEAKERLENS_CLIENT_"
TOKEN = PREFIX + "TOKEN"
TRUE, FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
VARIABLES_HELP = f"""environment:
  {PREFIX}SERVER, {PREFIX}TLS, {PREFIX}TLS_CA, …
     stand for --server, --tls, --tls-ca and so on, where a flag is not given
  {TOKEN}
     the bearer token itself; for a file of it there is --token-file"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command."""
    parser.add_argument(
        "--server",
        type=_address,
        default=_variable("server") or DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="how long a call may take, for each file in it (default: %(default)g)",
    )
    parser.add_argument(
        "--tls", action=argparse.BooleanOptionalAction, default=None, help="use TLS; the options below imply it"
    )
    for name, metavar, text in (
        ("tls-ca", "FILE", "trust these authorities (PEM)"),
        ("tls-certificate", "FILE", "show this certificate (PEM) to a server that asks for one"),
        ("tls-key", "FILE", "its key (PEM)"),
        ("tls-server-name", "NAME", "the name in the server's certificate, if it is not the host's"),
        ("token-file", "FILE", "send the bearer token that this file holds"),
    ):
        parser.add_argument(f"--{name}", metavar=metavar, default=_variable(name), help=text)


def connect(arguments: argparse.Namespace) -> SpeakerClient:
    """The client that the options describe.

    Raises:
        CommandError: a file cannot be read, or the options do not go together.
    """
    try:
        return SpeakerClient(
            arguments.server, timeout=arguments.timeout, tls=_tls(arguments), token=_token(arguments.token_file)
        )
    except OSError as error:
        raise usage_error(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise usage_error(str(error)) from error


def _tls(arguments: argparse.Namespace) -> bool | Tls:
    tls = Tls(arguments.tls_ca, arguments.tls_certificate, arguments.tls_key, arguments.tls_server_name)
    wanted = arguments.tls
    if wanted is None:
        wanted = _truth(_variable("tls")) or tls != Tls()
    return wanted and tls


def _token(file: str | None) -> str | None:
    if file is not None:
        return Path(file).read_text(encoding="utf-8").strip()
    return os.environ.get(TOKEN) or None


def _truth(text: str | None) -> bool:
    word = (text or "").lower()
    if word not in TRUE + FALSE:
        raise usage_error(f"{PREFIX}TLS: {text!r} is neither true nor false")
    return word in TRUE


def _variable(name: str) -> str | None:
    """The value of a flag's variable; an empty one is none."""
    return os.environ.get(PREFIX + name.replace("-", "_").upper()) or None


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as {DEFAULT_ADDRESS}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
