"""Flags, environment, and refusals that name the flag."""

import dataclasses
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
