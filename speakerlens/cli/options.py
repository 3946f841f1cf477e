"""The options that commands share: which server and how to reach it, which models, which saliency maps."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from speakerlens.arguments import ArgumentParser
from speakerlens.balancing import DEFAULT_BALANCING, SCHEME, Target
from speakerlens.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT_S, Tls
from speakerlens.cli.failures import EXIT_CODES_HELP, usage_error
from speakerlens.client import SpeakerClient
from speakerlens.requests import STAGES, Explain, StageName

FILE_HELP = "audio file, such as WAV, FLAC, MP3 or OGG; - is standard input"
PREFIX = "SPEAKERLENS_CLIENT_"
TOKEN = PREFIX + "TOKEN"
TRUE, FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
VARIABLES_HELP = f"""environment:
  {PREFIX}SERVER, {PREFIX}TLS, {PREFIX}TLS_CA, …
     values of --server, --tls, --tls-ca and so on, where a flag is not given
  {TOKEN}
     the bearer token; --token-file names a file that holds it"""


class CommandParser(ArgumentParser):
    """The parser of one command that calls a server.

    Args:
        name: the command.
        about: a phrase that says what it does.
        usage: its positional arguments.
        examples: the words after `speakerlens`, one example each.
    """

    error_prefix = "speakerlens"

    def __init__(self, name: str, about: str, usage: str, examples: Sequence[str]) -> None:
        shown = "\n".join(f"  speakerlens {example}" for example in examples)
        super().__init__(
            prog=f"speakerlens {name}",
            usage=f"speakerlens {name} {usage} [OPTIONS]".replace("  ", " "),
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:\n{shown}\n\n{VARIABLES_HELP}\n\n{EXIT_CODES_HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_variants(self) -> None:
        """Add `--variants`."""
        self.add_argument(
            "--variants",
            default="all",
            metavar="NAMES",
            help="models to use, with commas: act-da is its newest version, act-da@3 version 3 (default: all)",
        )

    def add_json(self, text: str = "print one JSON object") -> None:
        """Add `--json`."""
        self.add_argument("--json", action="store_true", help=text)

    def add_explain(self, *, target: bool = False) -> None:
        """Add the options of saliency maps; with `target`, `--target` too."""
        group = self.add_argument_group("saliency maps")
        group.add_argument("--explain", action="store_true", help="request maps; implied by the options below")
        group.add_argument(
            "--stages", metavar="STAGES", help=f"maps to request, with commas, of {', '.join(STAGES)} (default: fused)"
        )
        if target:
            text = "explain the score of this speaker, not of the best one"
            group.add_argument("--target", metavar="SPEAKER", help=text)
            group.add_argument(
                "--listen",
                type=Path,
                metavar="OUT.flac",
                help="write what each map keeps of the sound and then what it removes, model by model, and print what "
                "the models answer for both; numbered as plots are",
            )
        group.add_argument(
            "--plot",
            type=Path,
            metavar="OUT.png",
            help="draw waveform, log-mel and every map (.png, .svg or .pdf); "
            "for several files OUT-1.png, OUT-2.png and so on",
        )
        group.add_argument(
            "--save",
            type=Path,
            metavar="OUT.npz",
            help="write maps, log-mel and axes as numpy arrays, named VARIANT@VERSION/STAGE; numbered as plots are",
        )

    def add_connection(self) -> None:
        """Add the options of the connection, last in the help."""
        group = self.add_argument_group("connection")
        group.add_argument(
            "--server",
            type=_address,
            default=_variable("server") or DEFAULT_ADDRESS,
            metavar="HOST:PORT",
            help="one server, several with commas, or dns:///HOST:PORT for a name of several (default: %(default)s)",
        )
        group.add_argument(
            "--timeout",
            type=_seconds,
            default=DEFAULT_TIMEOUT_S,
            metavar="SECONDS",
            help="time limit of a call, for each file in it (default: %(default)g)",
        )
        group.add_argument(
            "--balancing",
            action=argparse.BooleanOptionalAction,
            default=None,
            help="spread calls over the servers, and repeat on another one what a lost server did not answer; "
            "enrolments, removals, imports and live audio are never repeated (default: yes)",
        )
        group.add_argument(
            "--tls", action=argparse.BooleanOptionalAction, default=None, help="use TLS; implied by the options below"
        )
        for name, metavar, text in (
            ("tls-ca", "FILE", "trust these certificate authorities (PEM)"),
            ("tls-certificate", "FILE", "client certificate (PEM), for servers that ask for one"),
            ("tls-key", "FILE", "its private key (PEM)"),
            ("tls-server-name", "NAME", "name in the server's certificate, if it is not the host's"),
            ("token-file", "FILE", "send the bearer token in this file"),
        ):
            group.add_argument(f"--{name}", metavar=metavar, default=_variable(name), help=text)


def connect(arguments: argparse.Namespace) -> SpeakerClient:
    """Return the client that the options describe.

    Raises:
        CommandError: a file cannot be read, or the options contradict each other.
    """
    balanced = arguments.balancing
    if balanced is None:
        balanced = _truth("balancing", default=True)
    try:
        return SpeakerClient(
            arguments.server,
            timeout=arguments.timeout,
            tls=_tls(arguments),
            token=_token(arguments.token_file),
            balancing=DEFAULT_BALANCING if balanced else None,
        )
    except OSError as error:
        raise usage_error(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise usage_error(str(error)) from error


def explain_of(arguments: argparse.Namespace, target: str | None = None) -> bool | Explain:
    """Return which maps the options request; False for none."""
    listen = getattr(arguments, "listen", None) is not None
    if not (arguments.explain or arguments.stages or target or arguments.plot or arguments.save or listen):
        return False
    stages = cast(Sequence[StageName], (arguments.stages or "fused").split(","))
    return Explain(stages=stages, target=target, listen=listen)


def positive(text: str) -> int:
    """Parse a whole number from 1 to 2^31 - 1."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def speaker_name(text: str) -> str:
    """Parse the name of a speaker."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes of the command line that are not text
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, as names of speakers must be") from None
    return text


def _tls(arguments: argparse.Namespace) -> bool | Tls:
    tls = Tls(arguments.tls_ca, arguments.tls_certificate, arguments.tls_key, arguments.tls_server_name)
    wanted = arguments.tls
    if wanted is None:
        wanted = _truth("tls", default=False) or tls != Tls()
    return wanted and tls


def _token(file: str | None) -> str | None:
    if file is not None:
        return Path(file).read_text(encoding="utf-8").strip()
    return os.environ.get(TOKEN) or None


def _truth(name: str, *, default: bool) -> bool:
    """Return the value of the environment variable of a yes-or-no flag."""
    text = _variable(name)
    if text is None:
        return default
    if text.lower() not in TRUE + FALSE:
        raise usage_error(f"{PREFIX}{name.upper()}: {text!r} is neither true nor false")
    return text.lower() in TRUE


def _variable(flag: str) -> str | None:
    """Return the value of a flag's environment variable; None if it is unset or empty."""
    return os.environ.get(PREFIX + flag.replace("-", "_").upper()) or None


def _address(text: str) -> str:
    try:
        servers = Target.parse(text).servers
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    for server in servers:
        host, _, port = server.rpartition(":")
        if not SCHEME.match(server) and not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise argparse.ArgumentTypeError(f"{server!r} is not HOST:PORT, such as {DEFAULT_ADDRESS}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
