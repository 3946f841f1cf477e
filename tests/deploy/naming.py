"""What the files for operators name: flags, variables, commands, ports, metrics; and what the programs know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from speakerlens import demo
from speakerlens.cli.main import CLIENT, PARTS
from speakerlens.serving.config import CLIENT_PREFIX, PREFIX, Config, flag_of
from tests.conftest import ROOT
from tests.serving.metrics.test_docs import documented

DEPLOYED = [
    ROOT / "Dockerfile",
    *(ROOT / "deploy").glob("compose*.yaml"),
    *(ROOT / "deploy" / "chart").glob("*.yaml"),
    *(ROOT / "deploy" / "chart" / "templates").iterdir(),
    *(ROOT / "deploy" / "chart" / "files").iterdir(),
    *(ROOT / "deploy" / "kustomize").rglob("*.yaml"),
    *(ROOT / "deploy" / "prometheus").glob("*.yml"),
    *(ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"),
    *(file for file in (ROOT / "deploy" / "balancing").iterdir() if file.suffix in (".conf", ".cfg", ".yaml")),
]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
FILES = DEPLOYED + DOCUMENTS

# Flags of other programs, by whose they are.
FOREIGN_FLAGS = {
    "docker": {
        "build",
        "target",
        "rm",
        "build-arg",
        "secret",
        "mount",
        "user",
        "read-only",
        "cap-drop",
        "tmpfs",
        "gpus",
        "health-cmd",
    },
    "pip": {"no-cache-dir", "require-hashes", "only-binary", "no-deps", "no-build-isolation", "wheel-dir", "python"}
    | {"no-index", "without-pip", "index-url", "extra-index-url"},
    "health check": {"interval", "timeout", "start-period", "retries", "from"},
    "prometheus": {"storage.tsdb.path", "config.file", "enable-feature"},
    "buf": {"protocol", "http2-prior-knowledge", "list-methods", "cacert", "cert", "key"},
    "torchrun": {
        "standalone",
        "nproc-per-node",
        "nnodes",
        "master-addr",
        "rdzv-backend",
        "rdzv-endpoint",
        "rdzv-id",
        "max-restarts",
    },
    "helm and kubectl": {
        "namespace",
        "set",
        "create-namespace",
        "version",
        "values",
        "from-file",
        "from-literal",
        "wait",
    },
    "perf_analyzer": {"input-data", "concurrency-range"},
    "twine, gh and cosign": {"strict", "owner", "certificate-identity-regexp", "certificate-oidc-issuer"},
    "git and pytest": {"no-scope", "dist", "no-loadscope-reorder", "tags"},
}
# Ports of other programs, and of examples.
FOREIGN_PORTS = {
    9090: "prometheus",
    9093: "alertmanager",
    3000: "grafana",
    4317: "OTLP",
    5432: "PostgreSQL",
    29500: "torchrun",
    443: "HTTPS",
}
EXAMPLE_PORTS = {50050, 50052, 50053, 8001, 8002, 8003, 7000}

FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9]+(?:[-.][a-z0-9]+)*)")
VARIABLE = re.compile(rf"\b{PREFIX}[A-Z][A-Z_]*[A-Z]\b")
COMMAND = re.compile(r"(?:^ *(?:\$ )?|`|\| |\[)speakerlens,? ([a-z]+(?:-[a-z]+)*)(?=[\s`,]|$)")
# Not the user and group of an image.
PORT = re.compile(r"(?<!10001:)(?<=[a-zA-Z0-9.\]]:)(\d{4,5})\b(?![:.\d-])")
METRIC = re.compile(r"(?<![\w.:/])speakerlens_[a-z0-9_]+\b(?!\.)(?!\()")
RECORDED = re.compile(r"(?<!\w)speakerlens:[a-z0-9_]+:[a-z0-9_]+")


def server_flags() -> set[str]:
    """Return the flags of the server, without dashes."""
    names = {flag_of(name).removeprefix("--") for name in Config.model_fields}
    negated = {
        f"no-{flag_of(name).removeprefix('--')}"
        for name, field in Config.model_fields.items()
        if field.annotation is bool
    }
    return names | negated | {"config", "print-config", "help", "version"}


def own_flags() -> set[str]:
    """Return the flags of every program of the project: the server's, and all that a source file adds to a parser."""
    return server_flags() | set(_added())


def _added() -> Iterator[str]:
    for part in ("speakerlens", "training", "export", "deploy", "benchmarks", "serving", "scoring", "tests"):
        for file in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                    yield from _flags(node)
    # These are added in loops.
    yield from ("tls-ca", "tls-certificate", "tls-key", "tls-server-name", "token-file")


def _flags(call: ast.Call) -> Iterator[str]:
    negated = any(key.arg == "action" and "BooleanOptional" in ast.dump(key.value) for key in call.keywords)
    for argument in call.args:
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("--"):
            name = str(argument.value).removeprefix("--")
            yield name
            if negated:
                yield f"no-{name}"


def commands() -> set[str]:
    """Return the commands of `speakerlens`."""
    return {*CLIENT, *PARTS, "completion"}


def variables() -> set[str]:
    """Return the environment variables of the server and of the client."""
    server = {PREFIX + name.upper() for name in Config.model_fields} | {PREFIX + "CONFIG"}
    names = (
        "server",
        "tls",
        "tls-ca",
        "tls-certificate",
        "tls-key",
        "tls-server-name",
        "token-file",
        "token",
        "balancing",
    )
    return server | {CLIENT_PREFIX + name.replace("-", "_").upper() for name in names}


def ports() -> set[int]:
    """Return the default ports of the server, and that of HTTP: a server of its own has none by default."""
    return {int(Config.model_fields[name].default) for name in ("port", "metrics_port")} | {demo.DEFAULT_PORT}


def metrics() -> set[str]:
    """Return the names of the server's samples, and those that the Prometheus adapter makes of them."""
    names = set[str]()
    for name, row in documented().items():
        names |= {name, *(f"{name}_{suffix}" for suffix in ("bucket", "sum", "count") if row.kind == "histogram")}
    adapter = yaml.safe_load((ROOT / "deploy" / "chart" / "files" / "prometheus-adapter.yaml").read_text("utf-8"))
    return names | {rule["name"]["as"] for rule in adapter}


def recorded() -> set[str]:
    """Return the names of the recording rules."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "recording.yml").read_text("utf-8"))["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


def named(pattern: re.Pattern[str], files: list[Path], *, code: bool = False) -> dict[str, str]:
    """Return what a pattern finds in files, each with the first place; with `code`, in pages only in blocks of code."""
    found: dict[str, str] = {}
    for file in files:
        fenced = not code or file.suffix != ".md"
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if code and file.suffix == ".md":
                fenced ^= line.lstrip().startswith("```")
            if not fenced and "`speakerlens" not in line:
                continue
            for match in pattern.finditer(line):
                found.setdefault(match[1] if pattern.groups else match[0], f"{file.relative_to(ROOT)}:{number}")
    return found
