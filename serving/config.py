"""The server's configuration: one frozen dataclass, filled from flags and environment variables.

Every field is a flag (`max_batch` is `--max-batch`) and an environment variable (`SPEAKERLENS_MAX_BATCH`); a flag wins.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "SPEAKERLENS_"
DEVICES = ("auto", "cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")
PORTS = (0, 65535)
# What Kubernetes writes: beside a Service named speakerlens, every container finds SPEAKERLENS_PORT=tcp://10.0.0.1:50051
# in its environment, which says where that Service is, not where this server is to listen.
SERVICE_LINK = "tcp://"


def _about(
    help_text: str, limits: tuple[float, float] = (-math.inf, math.inf), choices: tuple[str, ...] | None = None
) -> dict[str, Any]:
    return {"help": help_text, "limits": limits, "choices": choices}


@dataclass(frozen=True)
class Config:
    """Everything an operator can set. Durations are in seconds, sizes in bytes unless the name says otherwise."""

    bundles: Path = field(
        default=Path("bundles"), metadata=_about("folder with the model bundles, <variant>/<version>/bundle.json")
    )
    host: str = field(default="127.0.0.1", metadata=_about("address that gRPC listens on"))
    port: int = field(default=50051, metadata=_about("port of gRPC; 0 lets the system choose", PORTS))
    metrics_host: str = field(default="127.0.0.1", metadata=_about("address that /metrics listens on (HTTP)"))
    metrics_port: int = field(default=8000, metadata=_about("port of /metrics; 0 lets the system choose", PORTS))
    device: str = field(
        default="auto", metadata=_about("where models run; auto is CUDA where it works, else the CPU", choices=DEVICES)
    )
    threads: int = field(default=0, metadata=_about("threads of ONNX Runtime per model; 0 is one per core", (0, 1024)))
    codec_threads: int = field(default=2, metadata=_about("threads that decode audio and encode answers", (1, 256)))
    max_message_bytes: int = field(
        default=32 * 1024 * 1024, metadata=_about("largest request, in bytes", (1024, 2**31 - 1))
    )
    min_seconds: float = field(
        default=0.5, metadata=_about("shortest audio, in seconds (or more, where a model needs it)", (0.0, 3600.0))
    )
    max_seconds: float = field(default=60.0, metadata=_about("longest audio, in seconds", (0.1, 3600.0)))
    max_in_flight: int = field(
        default=128, metadata=_about("requests in work at once; more are refused", (1, 1_000_000))
    )
    queue_size: int = field(
        default=64, metadata=_about("requests that wait per model and kind of answer; more are refused", (1, 1_000_000))
    )
    max_batch: int = field(default=8, metadata=_about("utterances computed together", (1, 1024)))
    max_batch_seconds: float = field(
        default=120.0, metadata=_about("audio computed together, padding included, in seconds", (0.1, 1e6))
    )
    drain_seconds: float = field(
        default=30.0, metadata=_about("how long SIGTERM waits for requests in flight, in seconds", (0.0, 3600.0))
    )
    log_level: str = field(default="info", metadata=_about("least severe log line on stderr", choices=LOG_LEVELS))


def flag_of(name: str) -> str:
    """The flag of a field: `max_batch` is `--max-batch`."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Config:
    """Reads flags, then environment variables, then defaults.

    A wrong value ends the process with status 2 and a line that names the flag, and the variable if it came from there.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serves speaker identification with saliency over gRPC, and Prometheus metrics over HTTP.",
        epilog=f"Each option can also be set by an environment variable, as --max-batch by {PREFIX}MAX_BATCH.",
        allow_abbrev=False,
    )
    for option in fields(Config):
        _add(parser, option)
    given = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    for option in fields(Config):
        variable = PREFIX + option.name.upper()
        text = environ.get(variable, "")
        if given[option.name] is not None:
            values[option.name] = _value(option, given[option.name], "", parser)
        elif text and not (variable.endswith("_PORT") and text.startswith(SERVICE_LINK)):
            values[option.name] = _value(option, text, f" (from {variable})", parser)
    config = Config(**values)
    if config.min_seconds > config.max_seconds:
        _fail(parser, f"--min-seconds {config.min_seconds:g} is above --max-seconds {config.max_seconds:g}")
    if config.max_seconds > config.max_batch_seconds:
        _fail(parser, f"--max-batch-seconds {config.max_batch_seconds:g} is below --max-seconds {config.max_seconds:g}")
    return config


def _add(parser: argparse.ArgumentParser, option: "Field[Any]") -> None:
    choices = option.metadata["choices"]
    metavar = {int: "N", float: "SECONDS", str: "ADDRESS", Path: "DIR"}[_type(option)]
    parser.add_argument(
        flag_of(option.name),
        metavar="{" + ",".join(choices) + "}" if choices else metavar,
        help=f"{option.metadata['help']} (default: {option.default})",
    )


def _type(option: "Field[Any]") -> type:
    return Path if isinstance(option.default, Path) else type(option.default)


def _value(option: "Field[Any]", text: str, origin: str, parser: argparse.ArgumentParser) -> Any:
    flag, kind = flag_of(option.name), _type(option)
    low, high = option.metadata["limits"]
    choices = option.metadata["choices"]
    if choices and text not in choices:
        _fail(parser, f"{flag} is one of {', '.join(choices)}, not {text!r}{origin}")
    if kind not in (int, float):
        return kind(text) if text else _fail(parser, f"{flag} is empty{origin}")
    try:
        number = kind(text)
    except ValueError:
        _fail(parser, f"{flag} takes a {'whole number' if kind is int else 'number'}, not {text!r}{origin}")
    if not low <= number <= high:
        _fail(parser, f"{flag} is from {low:g} to {high:g}, not {text}{origin}")
    return number


def _fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    sys.stderr.write(f"error: {message} (see {parser.prog} --help)\n")
    raise SystemExit(2)
