"""The server's configuration: one frozen dataclass, the schema of the flags, the environment and the file.

Every field is a flag (`max_batch` is `--max-batch`), an environment variable (`SPEAKERLENS_MAX_BATCH`) and a key of the
configuration file (`max_batch`); `serving.settings` reads them. No field holds a secret: secrets lie in files of their
own, and a field names the file.
"""

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

PREFIX = "SPEAKERLENS_"
DEVICES = ("auto", "cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
PORTS = (0, 65535)


def _about(
    help_text: str,
    limits: tuple[float, float] = (-math.inf, math.inf),
    choices: tuple[str, ...] | None = None,
    unit: str | None = None,
) -> dict[str, Any]:
    return {"help": help_text, "limits": limits, "choices": choices, "unit": unit}


@dataclass(frozen=True)
class Config:
    """Everything an operator can set. Durations are in seconds, sizes in bytes unless the name says otherwise."""

    bundles: Path = field(
        default=Path("bundles"), metadata=_about("folder with the model bundles, <variant>/<version>/bundle.json")
    )
    watch: float = field(
        default=0.0,
        metadata=_about(
            "look for new and removed bundles this often, in seconds; 0 never looks again", (0.0, 86_400.0)
        ),
    )
    keep_versions: int = field(
        default=2, metadata=_about("newest versions of each variant that are kept loaded", (1, 1000))
    )
    speakers: Path | None = field(
        default=None, metadata=_about("file that enrolled speakers are kept in (SQLite); none by default", unit="FILE")
    )
    host: str = field(default="127.0.0.1", metadata=_about("address that gRPC listens on"))
    port: int = field(default=50051, metadata=_about("port of gRPC; 0 lets the system choose", PORTS))
    metrics: bool = field(default=True, metadata=_about("serve /metrics over HTTP on a port of its own"))
    metrics_host: str = field(default="127.0.0.1", metadata=_about("address that /metrics listens on (HTTP)"))
    metrics_port: int = field(default=8000, metadata=_about("port of /metrics; 0 lets the system choose", PORTS))
    tls_certificate: Path | None = field(
        default=None, metadata=_about("serve TLS with this certificate (chain), PEM; read again when it changes")
    )
    tls_key: Path | None = field(default=None, metadata=_about("key of the certificate, PEM, not encrypted"))
    tls_client_ca: Path | None = field(
        default=None, metadata=_about("accept only clients with a certificate of these authorities, PEM")
    )
    tokens: Path | None = field(
        default=None, metadata=_about("accept only calls with a bearer token of this file; read again when it changes")
    )
    token_rate: float = field(
        default=0.0, metadata=_about("calls a second of one token; 0 is no limit", (0.0, 1e6), unit="CALLS")
    )
    token_burst: int = field(default=20, metadata=_about("calls of one token at once, above its rate", (1, 1_000_000)))
    token_seconds_per_day: float = field(
        default=0.0, metadata=_about("audio of one token a day (UTC), in seconds; 0 is no limit", (0.0, 1e9))
    )
    reflection: bool = field(default=True, metadata=_about("answer gRPC reflection"))
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
    max_seconds: float = field(default=10_800.0, metadata=_about("longest audio, in seconds", (0.1, 86_400.0)))
    max_explained_seconds: float = field(
        default=120.0, metadata=_about("longest audio where maps are asked for, in seconds", (0.1, 86_400.0))
    )
    window_seconds: float = field(
        default=3.0, metadata=_about("longer audio is answered from overlapping windows of this length", (1.0, 60.0))
    )
    stream_idle_seconds: float = field(
        default=30.0,
        metadata=_about(
            "how long a stream may keep the server waiting, in seconds; each second of audio buys ten", (0.1, 86_400.0)
        ),
    )
    max_requests: int = field(default=256, metadata=_about("utterances in one IdentifyBatch", (1, 100_000)))
    max_in_flight: int = field(
        default=128,
        metadata=_about(
            "requests in work at once, at most half of them live streams; more are refused", (1, 1_000_000)
        ),
    )
    queue_size: int = field(
        default=64,
        metadata=_about("requests that wait per model, kind of answer and priority; more are refused", (1, 1_000_000)),
    )
    max_batch: int = field(default=8, metadata=_about("utterances computed together", (1, 1024)))
    max_batch_seconds: float | None = field(
        default=None,
        metadata=_about(
            "audio computed together, padding included, in seconds; by default 10 on a CPU and 120 with CUDA",
            (0.1, 1e6),
        ),
    )
    batch_wait_seconds: float = field(
        default=0.0, metadata=_about("how long a request waits for others on an idle device, in seconds", (0.0, 1.0))
    )
    max_streams: int = field(
        default=256, metadata=_about("calls at once on one connection; more wait at the client", (1, 1_000_000))
    )
    max_connections: int = field(
        default=1024, metadata=_about("connections at once; more are not accepted", (1, 1_000_000))
    )
    max_held_bytes: int = field(
        default=1024 * 1024 * 1024,
        metadata=_about("requests and answers that all calls hold together, in bytes; more are refused", (1024, 2**40)),
    )
    transfer_seconds: float = field(
        default=60.0,
        metadata=_about(
            "how long a request may take to arrive, and an answer to be read, in seconds, beside its time at 1 Mbit/s",
            (0.1, 86_400.0),
        ),
    )
    connection_age_seconds: float = field(
        default=1800.0,
        metadata=_about(
            "age at which a connection is replaced, so that load spreads to new servers; 0 is never", (0.0, 1e7)
        ),
    )
    connection_grace_seconds: float = field(
        default=0.0, metadata=_about("how long calls of a replaced connection may last; 0 is no limit", (0.0, 1e7))
    )
    keepalive_seconds: float = field(
        default=30.0, metadata=_about("how often a quiet connection is pinged; 0 is never", (0.0, 1e6))
    )
    metric_exemplars: bool = field(
        default=False,
        metadata=_about("keep ids of requests beside the histograms of /metrics, for OpenMetrics scrapes"),
    )
    probe_seconds: float = field(
        default=300.0,
        metadata=_about(
            "how often each variant answers its bundle's own probes, in seconds; 0 is never", (0.0, 86_400.0)
        ),
    )
    saliency_share: float = field(
        default=0.0,
        metadata=_about(
            "share of requests without maps whose maps are measured all the same, on an idle device",
            (0.0, 1.0),
            unit="N",
        ),
    )
    shadow_share: float = field(
        default=0.0,
        metadata=_about(
            "share of requests that the other variants answer as well, on an idle device, to compare them",
            (0.0, 1.0),
            unit="N",
        ),
    )
    drift_samples: int = field(
        default=1000,
        metadata=_about("last answers of each variant that are compared with its bundle's baseline", (10, 1_000_000)),
    )
    trace_endpoint: str | None = field(
        default=None,
        metadata=_about("send traces to this OTLP collector, http://HOST:4317 (needs the extra otel)", unit="URL"),
    )
    trace_share: float = field(
        default=1.0,
        metadata=_about("share of calls traced, of those without a trace of their own", (0.0, 1.0), unit="N"),
    )
    drain_seconds: float = field(
        default=30.0, metadata=_about("how long SIGTERM waits for requests in flight, in seconds", (0.0, 3600.0))
    )
    log_level: str = field(default="info", metadata=_about("least severe log line on stderr", choices=LOG_LEVELS))
    log_format: str = field(
        default="text", metadata=_about("lines for people, or one JSON object a line", choices=LOG_FORMATS)
    )


@dataclass(frozen=True)
class Option:
    """One field of the schema: its name, the type of one value, and what limits it."""

    name: str
    kind: type
    many: bool
    default: Any
    help: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    choices: tuple[str, ...] | None = None
    unit: str | None = None

    @property
    def flag(self) -> str:
        """`max_batch` is `--max-batch`."""
        return flag_of(self.name)

    @property
    def variable(self) -> str:
        """`max_batch` is SPEAKERLENS_MAX_BATCH."""
        return PREFIX + self.name.upper()


class ConfigError(Exception):
    """The configuration cannot be used: one sentence that names the flag, and the variable or file it came from."""


def flag_of(name: str) -> str:
    """The flag of a field: `max_batch` is `--max-batch`."""
    return "--" + name.replace("_", "-")


def options(schema: type = Config) -> dict[str, Option]:
    """The options of a dataclass by name; its fields are bool, int, float, str or Path, `X | None` or `tuple[X, ...]`.

    Raises:
        TypeError: a field has another type, or no default.
    """
    hints = get_type_hints(schema)
    return {each.name: _option(each, hints[each.name]) for each in fields(schema)}


def check(config: Config) -> None:
    """Whether the values go together.

    Raises:
        ConfigError: they do not.
    """
    if config.min_seconds > config.max_seconds:
        raise ConfigError(f"--min-seconds {config.min_seconds:g} is above --max-seconds {config.max_seconds:g}")
    if config.max_held_bytes < config.max_message_bytes:
        raise ConfigError(
            f"--max-held-bytes {config.max_held_bytes} is below --max-message-bytes {config.max_message_bytes}"
        )
    if (config.tls_certificate is None) != (config.tls_key is None):
        given, missing = ("key", "certificate") if config.tls_certificate is None else ("certificate", "key")
        raise ConfigError(f"--tls-{given} needs --tls-{missing} as well")
    if config.tls_client_ca is not None and config.tls_certificate is None:
        raise ConfigError("--tls-client-ca needs --tls-certificate and --tls-key as well")
    # The last window of a recording may be a little shorter than the others.
    if config.min_seconds > config.window_seconds / 2:
        raise ConfigError(
            f"--min-seconds {config.min_seconds:g} is above half of --window-seconds {config.window_seconds:g}"
        )


def _option(each: Any, hint: Any) -> Option:
    parts = get_args(hint)
    many = len(parts) == 2 and parts[1] is Ellipsis
    optional = isinstance(hint, UnionType) and type(None) in parts
    kind = parts[0] if many or optional else hint
    if kind not in (bool, int, float, str, Path) or each.default is MISSING:
        raise TypeError(f"{each.name}: {hint} is no type of an option, or there is no default")
    return Option(each.name, kind, many, each.default, **each.metadata)
