"""Flags, environment, and refusals that name the flag."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from serving.config import Config, flag_of, parse


def test_defaults() -> None:
    config = parse([], {})
    assert config == Config()
    assert (config.host, config.port, config.metrics_host, config.metrics_port) == (
        "127.0.0.1",
        50051,
        "127.0.0.1",
        8000,
    )
    assert config.max_message_bytes == 32 * 1024 * 1024


def test_a_flag_wins_over_the_environment_which_wins_over_the_default() -> None:
    environ = {
        "SPEAKERLENS_MAX_BATCH": "3",
        "SPEAKERLENS_MAX_SECONDS": "12.5",
        "SPEAKERLENS_BUNDLES": "/b",
        "PORT": "9",
    }
    config = parse(["--max-batch", "5", "--device=cpu"], environ)
    assert config == Config(bundles=Path("/b"), max_batch=5, max_seconds=12.5, device="cpu")


def test_an_empty_variable_is_no_value() -> None:
    assert parse([], {"SPEAKERLENS_PORT": ""}).port == 50051


def test_the_link_of_a_kubernetes_service_is_no_port(capsys: pytest.CaptureFixture[str]) -> None:
    links = {
        "SPEAKERLENS_PORT": "tcp://10.0.0.1:50051",
        "SPEAKERLENS_METRICS_PORT": "tcp://10.0.0.2:80",
        "SPEAKERLENS_SERVICE_HOST": "10.0.0.1",
        "SPEAKERLENS_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert parse([], links) == Config()
    assert parse(["--port=7"], links).port == 7
    with pytest.raises(SystemExit):
        parse(["--port=tcp://10.0.0.1:50051"], {})
    assert "--port takes a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "port"), [(None, 50051), ("", 50051), ("7", 7), ("tcp://10.0.0.1:7", 50051)])
def test_the_image_is_asked_for_its_health_where_it_listens(value: str | None, port: int) -> None:
    text = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8")
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("HEALTHCHECK"))
    command = json.loads(lines[start + 1].strip().removeprefix("CMD "))
    assert command[:2] == ["/bin/sh", "-c"]
    environ = {} if value is None else {"SPEAKERLENS_PORT": value}
    shown = command[2].replace("exec speakerlens", "echo")
    done = subprocess.run([*command[:2], shown], env=environ, capture_output=True, text=True, timeout=10, check=True)
    assert done.stdout == f"health --server 127.0.0.1:{port} --timeout 4\n"
    assert parse([], environ).port == port


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--port=65536"], {}, "--port is from 0 to 65535, not 65536"),
        (["--port=http"], {}, "--port takes a whole number, not 'http'"),
        ([], {"SPEAKERLENS_MAX_BATCH": "0"}, "--max-batch is from 1 to 1024, not 0 (from SPEAKERLENS_MAX_BATCH)"),
        (["--max-seconds=nan"], {}, "--max-seconds is from 0.1 to 3600, not nan"),
        (["--device=tpu"], {}, "--device is one of auto, cpu, cuda, not 'tpu'"),
        (["--host="], {}, "--host is empty"),
        (["--min-seconds=5", "--max-seconds=4"], {}, "--min-seconds 5 is above --max-seconds 4"),
        (["--max-batch-seconds=30"], {}, "--max-batch-seconds 30 is below --max-seconds 60"),
    ],
)
def test_refusals(argv: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv, environ)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message} (see python -m serving --help)\n"


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in dataclasses.fields(Config):
        assert flag_of(option.name) in text
        assert f"(default: {option.default})" in text
