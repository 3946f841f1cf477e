"""The server's configuration: flags win over environment variables, those over the file, that over defaults.

Every field of `Config` is a flag (`max_batch` is `--max-batch`), an environment variable (`SPEAKERLENS_MAX_BATCH`) and
a key of the TOML file that `--config` names (`max_batch`). No field holds a secret: a field names the file that does.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from speakerlens.arguments import ArgumentParser, suggestion
from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.settings import Place, Settings, SettingsError, Tree, read_toml, text_value, validate

PROGRAM = "python -m serving"
PREFIX = "SPEAKERLENS_"
# The client's own variables, such as SPEAKERLENS_CLIENT_SERVER.
CLIENT_PREFIX = PREFIX + "CLIENT_"
# Kubernetes sets SPEAKERLENS_PORT=tcp://10.0.0.1:50051 in containers beside a Service named speakerlens. It tells where
# that Service is, not where this server should listen.
LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$")
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
DEVICE = re.compile(r"auto|cpu|cuda(:all|:\d{1,3}(,cuda:\d{1,3})*)?")
MAX_INSTANCES = 256
METAVARS = {int: "N", float: "SECONDS", str: "NAME", Path: "PATH"}

MODELS, NETWORK, SECURITY = "models", "network", "security"
ENROLMENT, LIMITS, COMPUTE, MONITORING, LOGS = "enrolment", "limits", "compute", "monitoring", "logs and stopping"
PORT: dict[str, Any] = {"ge": 0, "le": 65_535}
SHARE: dict[str, Any] = {"ge": 0.0, "le": 1.0}
DAY = 86_400.0
# The shortest audio, in seconds; a model may need more. Shorter speech is named too rarely.
MIN_SECONDS = 0.5


def _path(value: Any) -> Any:
    if value == "":
        raise ValueError("a path must not be empty")
    return value


def _device(value: Any) -> Any:
    if isinstance(value, str) and not DEVICE.fullmatch(value):
        raise ValueError(
            "must be auto, cpu, cuda, cuda:all or cuda:N, with the number N of a GPU, several with commas, not "
            f"{value!r}"
        )
    if isinstance(value, str) and len({*value.split(",")}) <= value.count(","):
        raise ValueError(f"names a GPU twice: {value!r}")
    return value


def _instances(value: Any) -> Any:
    text = str(value)
    if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= MAX_INSTANCES):
        raise ValueError(f"must be auto, or a number from 1 to {MAX_INSTANCES}, not {value!r}")
    return text


Location = Annotated[Path, BeforeValidator(_path)]
# Of a store: a path, or a URL.
Address = Annotated[str, BeforeValidator(_path)]
DeviceName = Annotated[str, BeforeValidator(_device)]
Instances = Annotated[str, BeforeValidator(_instances)]


def _option(group: str, default: Any, about: str, metavar: str | None = None, **bounds: Any) -> Any:
    extra: JsonDict = {"group": group, "metavar": metavar}
    return Field(default=default, description=about, json_schema_extra=extra, **bounds)


class Config(Settings):
    """Everything an operator can set. Durations are in seconds, sizes in bytes unless the name says otherwise."""

    bundles: Location = _option(MODELS, Path("bundles"), "folder of the model bundles, <variant>/<version>/bundle.json")
    watch: float = _option(
        MODELS, 0.0, "look for new and removed bundles this often, in seconds; 0: only at the start", ge=0, le=DAY
    )
    keep_versions: int = _option(MODELS, 2, "newest versions of each variant to keep loaded", ge=1, le=1000)

    speakers: Address | None = _option(
        ENROLMENT, None, "SQLite file, or postgresql:// URL, of the enrolled speakers", "FILE"
    )
    enroll_speech_seconds: float = _option(
        ENROLMENT,
        1.0,
        "least speech in each utterance of an enrolment, in seconds; 0: whatever is sent is enrolled",
        ge=0,
        le=600,
    )
    enroll_total_seconds: float = _option(
        ENROLMENT, 5.0, "least speech in all utterances of an enrolment, in seconds", ge=0, le=DAY
    )
    enroll_snr_db: float = _option(
        ENROLMENT, 5.0, "least signal-to-noise ratio of an utterance to enrol with, in dB", "DB", ge=-10, le=30
    )
    enroll_bandwidth_hz: float = _option(
        ENROLMENT,
        5000.0,
        "least bandwidth of an utterance to enrol with, in Hz; 3000 accepts telephone audio",
        "HZ",
        ge=0,
        le=8000,
    )
    keep_audio: bool = _option(
        ENROLMENT, False, "keep the recordings of enrolments, so that new versions of a model can embed them again"
    )
    forget_after: float = _option(
        ENROLMENT, 0.0, "days after which enrolments are removed; 0: never", "DAYS", ge=0, le=36_500
    )

    host: str = _option(NETWORK, "127.0.0.1", "address of the ports for calls", min_length=1)
    port: int = _option(NETWORK, 50051, "gRPC port; 0: chosen by the system", **PORT)
    http_port: int | None = _option(
        NETWORK,
        None,
        "port for JSON, live audio by WebSocket and a page in the browser, at the address of --host; 0: chosen by the "
        "system (needs the extra http)",
        **PORT,
    )
    metrics: bool = _option(NETWORK, True, "serve Prometheus metrics over HTTP on their own port")
    metrics_host: str = _option(NETWORK, "127.0.0.1", "address of the metrics port", min_length=1)
    metrics_port: int = _option(NETWORK, 8000, "port of /metrics; 0: chosen by the system", **PORT)
    reflection: bool = _option(NETWORK, True, "serve gRPC reflection")
    max_connections: int = _option(NETWORK, 1024, "open connections; more are refused", ge=1, le=1_000_000)
    connection_age_seconds: float = _option(
        NETWORK,
        1800.0,
        "age at which a client is asked to reconnect, so that load spreads to new servers; 0: never",
        ge=0,
        le=1e7,
    )

    tls_certificate: Location | None = _option(
        SECURITY, None, "serve TLS with this certificate chain, PEM; reloaded when it changes"
    )
    tls_key: Location | None = _option(SECURITY, None, "key of the certificate, PEM, not encrypted")
    tls_client_ca: Location | None = _option(
        SECURITY, None, "accept only clients with a certificate of these authorities, PEM"
    )
    tokens: Location | None = _option(
        SECURITY, None, "accept only calls with a bearer token of this file; reloaded when it changes"
    )

    max_message_bytes: int = _option(LIMITS, 32 * 2**20, "largest request, in bytes", ge=1024, le=2**31 - 1)
    max_held_bytes: int = _option(
        LIMITS,
        2**30,
        "requests and answers that all calls together hold, in bytes; more is refused",
        ge=1024,
        le=2**40,
    )
    max_in_flight: int = _option(
        LIMITS, 128, "requests in progress, at most half of them live streams; more are refused", ge=1, le=1_000_000
    )
    queue_size: int = _option(
        LIMITS, 64, "requests that wait per model, kind of answer and priority; more are refused", ge=1, le=1_000_000
    )
    max_seconds: float = _option(LIMITS, 10_800.0, "longest audio, in seconds", ge=MIN_SECONDS, le=DAY)
    max_explained_seconds: float = _option(
        LIMITS, 120.0, "longest audio of a request for saliency maps, in seconds", ge=0.1, le=DAY
    )
    stream_idle_seconds: float = _option(
        LIMITS,
        30.0,
        "how long a stream may keep the server waiting, in seconds; each second of audio adds ten, up to this again",
        ge=0.1,
        le=DAY,
    )
    transfer_seconds: float = _option(
        LIMITS,
        60.0,
        "time for a request to arrive and for an answer to be read, in seconds, beside its time at 1 Mbit/s",
        ge=0.1,
        le=DAY,
    )

    device: DeviceName = _option(
        COMPUTE,
        "auto",
        "where models run: auto (CUDA where it works, else the CPU), cpu, cuda, cuda:N, several of these with commas "
        "between, or cuda:all",
        "DEVICE",
    )
    tensorrt: Location | None = _option(
        COMPUTE, None, "compute with TensorRT on the GPU, and keep the engines it builds in this folder", "DIR"
    )
    cuda_graphs: bool = _option(
        COMPUTE, False, "launch batches of usual shapes as CUDA graphs; with one instance a GPU, and without TensorRT"
    )
    max_device_bytes: int = _option(
        COMPUTE,
        0,
        "GPU memory that each graph may take, in bytes, of which a model has three; 0: no limit",
        ge=0,
        le=2**50,
    )
    precision: Literal["fp32", "int8", "fp16", "auto"] = _option(
        COMPUTE,
        "fp32",
        "number format of the models: fp32; int8, for CPUs; fp16, for GPUs; auto: the fastest that the bundle's own "
        "figures allow",
    )
    threads: int = _option(
        COMPUTE, 0, "threads of ONNX Runtime for a batch that is computed alone; 0: one per core", ge=0, le=1024
    )
    instances: Instances = _option(
        COMPUTE,
        "auto",
        "batches computed at the same time, which share the threads; auto: one per thread, at most 4; with GPUs on "
        "each, auto: 1",
        "N",
    )
    codec_threads: int = _option(
        COMPUTE, 2, "threads that decode audio and encode answers, and decoder processes kept", ge=1, le=256
    )
    window_seconds: float = _option(
        COMPUTE,
        WINDOW_SECONDS,
        "length of the overlapping windows into which longer audio is cut, in seconds",
        ge=1,
        le=60,
    )
    max_batch: int = _option(
        COMPUTE, 8, "utterances in one batch; not set, on a GPU 64 to 256 by its memory", ge=1, le=1024
    )
    max_batch_seconds: float | None = _option(
        COMPUTE,
        None,
        "audio in one batch, padding included, in seconds; none: 10 on a CPU, 120 or 2 an utterance on a GPU",
        ge=0.1,
        le=1e6,
    )

    probe_seconds: float = _option(
        MONITORING, 300.0, "how often each variant is tested on its bundle's probes, in seconds; 0: never", ge=0, le=DAY
    )
    saliency_share: float = _option(
        MONITORING,
        0.0,
        "share of the requests without maps to compute maps for, on an idle device, as a measurement",
        "N",
        **SHARE,
    )
    shadow_share: float = _option(
        MONITORING,
        0.0,
        "share of the requests to repeat on the other variants, on an idle device, to compare them",
        "N",
        **SHARE,
    )
    drift_samples: int = _option(
        MONITORING,
        1000,
        "last answers of each variant to compare with its bundle's baseline",
        ge=10,
        le=1_000_000,
    )
    metric_exemplars: bool = _option(
        MONITORING, False, "keep request ids beside the histograms of /metrics, for OpenMetrics scrapes"
    )
    trace_endpoint: str | None = _option(
        MONITORING, None, "send traces to this OTLP collector, http://HOST:4317 (needs the extra otel)", "URL"
    )

    lame_duck_seconds: float = _option(
        LOGS,
        0.0,
        "how long requests are taken after SIGTERM, in seconds, while health says NOT_SERVING; then the drain begins",
        ge=0,
        le=3600,
    )
    drain_seconds: float = _option(
        LOGS, 30.0, "how long to finish requests in progress after SIGTERM, in seconds", ge=0, le=3600
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(LOGS, "info", "least severe line of the log")
    log_format: Literal["text", "json"] = _option(LOGS, "text", "text for people, or one JSON object per line")
    journal: Location | None = _option(
        LOGS, None, "append one JSON line for each decision to this file: names and scores, never audio", "FILE"
    )

    @model_validator(mode="after")
    def _check(self) -> "Config":
        """Refuse values that do not fit together."""
        if self.max_held_bytes < self.max_message_bytes:
            raise ValueError(
                f"--max-held-bytes {self.max_held_bytes} is below --max-message-bytes {self.max_message_bytes}"
            )
        if self.tensorrt is not None and self.cuda_graphs:
            raise ValueError("--cuda-graphs cannot be used with --tensorrt")
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("key", "certificate") if self.tls_certificate is None else ("certificate", "key")
            raise ValueError(f"--tls-{given} needs --tls-{missing}")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key")
        return self


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ, program: str = PROGRAM) -> Config:
    """Return the configuration of flags, environment, file and defaults.

    A wrong value ends the process with status 2 and one line that names the flag, and the variable or the file's line
    if it came from there; `--print-config` and `--help` end it with status 0.
    """
    given = vars(_parser(program).parse_args(argv))
    try:
        tree = _gather(given, environ)
        config = validate(Config, tree, _label)
    except SettingsError as error:
        sys.stderr.write(f"error: {error} (see {program} --help)\n")
        raise SystemExit(2) from None
    if given["print_config"]:
        sys.stdout.write(_document(config, tree))
        raise SystemExit(0)
    return config


def flag_of(name: str) -> str:
    """Return the flag of a field: `max_batch` is `--max-batch`."""
    return "--" + name.replace("_", "-")


def _parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=program,
        description="Serve speaker identification with saliency maps over gRPC and HTTP, and metrics for Prometheus.",
        epilog=f"Each option can also be set by an environment variable, as --max-batch by {PREFIX}MAX_BATCH, and in "
        "the file, as max_batch. A flag wins over the environment, the environment over the file.",
    )
    parser.add_argument("--config", metavar="FILE", help=f"read options from a TOML file (or {PREFIX}CONFIG)")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the options in force as such a file, each with its origin, and exit",
    )
    groups: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        facts: Any = field.json_schema_extra
        group = groups.setdefault(facts["group"], None) or parser.add_argument_group(facts["group"])
        groups[facts["group"]] = group
        about = f"{field.description} (default: {_in_words(field.default)})"
        if field.annotation is bool:
            group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            group.add_argument(flag_of(name), metavar=facts["metavar"] or _metavar(field), help=about)
    return parser


def _in_words(default: Any) -> str:
    """Return a default as the help names it."""
    if default is None or isinstance(default, bool):
        return {None: "none", False: "no", True: "yes"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(get_args(field.annotation)) + "}"
    kinds = [field.annotation, *(kind for kind in get_args(field.annotation) if kind is not NoneType)]
    return next((METAVARS[kind] for kind in kinds if kind in METAVARS), METAVARS[Path])


def _gather(given: Mapping[str, Any], environ: Mapping[str, str]) -> Tree:
    """Return the file's values, with the variables laid over them and the flags over both.

    Raises:
        SettingsError: the file cannot be read, a variable is unknown, or a flag is empty.
    """
    path = environ.get(PREFIX + "CONFIG") or None if given["config"] is None else given["config"]
    tree = Tree() if path is None else read_toml(Path(path))
    for name, text in _variables(environ):
        tree.set((name,), text_value(Config.model_fields[name].annotation, text), PREFIX + name.upper())
    for name, field in Config.model_fields.items():
        value = given[name]
        if value is None:
            continue
        flag = flag_of(name)
        if value == "":
            raise SettingsError(f"{flag} must not be empty")
        tree.set(
            (name,),
            text_value(field.annotation, value) if isinstance(value, str) else value,
            flag.replace("--", "--no-", 1) if value is False else flag,
        )
    return tree


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the field and text of each variable that is set; an empty one counts as not set."""
    names = {PREFIX + name.upper(): name for name in Config.model_fields}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(CLIENT_PREFIX) or not text:
            continue
        if LINK.search(variable) or (variable.endswith("_PORT") and LINK_VALUE.match(text)):
            continue
        if variable in names:
            yield names[variable], text
        elif variable != PREFIX + "CONFIG":
            raise SettingsError(f"there is no variable {variable}{suggestion(variable, names)}")


def _label(place: Place) -> str:
    return flag_of(str(place[0])) if place else ""


def _document(config: Config, tree: Tree) -> str:
    """Return the configuration as a TOML file, each value with its origin in a comment."""
    lines = []
    for name in Config.model_fields:
        value = getattr(config, name)
        origin = tree.origin((name,)) if name in tree.values else "default"
        lines.append(f"# {name} is not set  # {origin}" if value is None else f"{name} = {_toml(value)}  # {origin}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # JSON's strings are TOML's, but for the last control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
