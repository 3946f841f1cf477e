"""Flags, environment and file, and errors that name the flag."""

from pathlib import Path

import pytest

from speakerlens.serving.config import Config, flag_of, parse

DEVICES = "must be auto, cpu, cuda, cuda:all or cuda:N, with the number N of a GPU, several with commas"


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


def test_flags_win_over_the_environment() -> None:
    environ = {
        "SPEAKERLENS_MAX_BATCH": "3",
        "SPEAKERLENS_MAX_SECONDS": "12.5",
        "SPEAKERLENS_BUNDLES": "/b",
        "PORT": "9",
    }
    config = parse(["--max-batch", "5", "--device=cpu"], environ)
    assert config == Config(bundles=Path("/b"), max_batch=5, max_seconds=12.5, device="cpu")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert parse([], {"SPEAKERLENS_PORT": ""}).port == 50051


def test_links_of_a_kubernetes_service_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "--port must be a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--port=65536"], {}, "--port must be at most 65535, not 65536"),
        (["--port=http"], {}, "--port must be a whole number, not 'http'"),
        ([], {"SPEAKERLENS_MAX_BATCH": "0"}, "SPEAKERLENS_MAX_BATCH: --max-batch must be at least 1, not 0"),
        (["--max-seconds=nan"], {}, "--max-seconds must be a finite number, not nan"),
        (["--device=tpu"], {}, f"--device: {DEVICES}, not 'tpu'"),
        (["--device=cuda:-1"], {}, f"--device: {DEVICES}, not 'cuda:-1'"),
        (["--device=cuda:0,cpu"], {}, f"--device: {DEVICES}, not 'cuda:0,cpu'"),
        (["--device=cuda:1,cuda:0,cuda:1"], {}, "--device: names a GPU twice: 'cuda:1,cuda:0,cuda:1'"),
        (["--tensorrt=/e", "--cuda-graphs"], {}, "--cuda-graphs cannot be used with --tensorrt"),
        (["--host="], {}, "--host must not be empty"),
        (["--bundles="], {}, "--bundles must not be empty"),
        (["--tls-key=k"], {}, "--tls-key needs --tls-certificate"),
        (["--tls-client-ca=c"], {}, "--tls-client-ca needs --tls-certificate and --tls-key"),
        (["--max-held-bytes=1024"], {}, "--max-held-bytes 1024 is below --max-message-bytes 33554432"),
        (["--max-seconds=0.4"], {}, "--max-seconds must be at least 0.5, not 0.4"),
    ],
)
def test_wrong_values_are_refused(
    argv: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv, environ)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message} (see python -m serving --help)\n"


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Config.model_fields.items():
        assert flag_of(name) in text
        words = {"None": "none", "True": "yes", "False": "no"}
        default = words.get(str(field.default), str(field.default).removesuffix(".0"))
        assert f"(default: {default})" in text.partition(f"{flag_of(name)} ")[2]


def refusal(argv: list[str], environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(argv, environ)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.endswith(" (see python -m serving --help)\n")
    assert text.count("\n") == 1
    return text.removeprefix("error: ").removesuffix(" (see python -m serving --help)\n")


def write(folder: Path, text: str) -> str:
    path = folder / "speakerlens.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'bundles = "/b"\nmax_batch = 3\nmax_seconds = 30\nreflection = false\nport = 1\n')
    environ = {"SPEAKERLENS_PORT": "2", "SPEAKERLENS_MAX_BATCH": "4", "SPEAKERLENS_CONFIG": file}
    wanted = Config(bundles=Path("/b"), port=2, max_batch=5, max_seconds=30.0, reflection=False)
    assert parse(["--max-batch=5"], environ) == wanted
    del environ["SPEAKERLENS_CONFIG"]
    assert parse(["--max-batch=5", "--config", file], environ) == wanted


@pytest.mark.parametrize(
    ("argv", "word", "wanted"),
    [
        (["--reflection"], "false", True),
        (["--no-reflection"], "true", False),
        ([], "FALSE", False),
        ([], "off", False),
        ([], "1", True),
        ([], "", True),
    ],
)
def test_booleans(argv: list[str], word: str, wanted: bool) -> None:
    assert parse(argv, {"SPEAKERLENS_REFLECTION": word}).reflection is wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nmax_batc = 3\n", '{file}, line 2: unknown key "max_batc" in the file; did you mean max_batch?'),
        ("[serving]\nport = 3\n", '{file}, line 1: unknown key "serving" in the file'),
        ("port = 65536\n", "{file}, line 1: --port must be at most 65535, not 65536"),
        ("# one\nport = 1.5\n", "{file}, line 2: --port must be a whole number, not 1.5"),
        ("port = true\n", "{file}, line 1: --port must be a whole number, not true"),
        ("port = [1]\n", "{file}, line 1: --port must be a whole number, not [1]"),
        ('port = "1"\n', "{file}, line 1: --port must be a whole number, not '1'"),
        ('reflection = "false"\n', "{file}, line 1: --reflection must be true or false, not 'false'"),
        ("reflection = 0\n", "{file}, line 1: --reflection must be true or false, not 0"),
        ("host = 7\n", "{file}, line 1: --host must be text, not 7"),
        ('host = ""\n', "{file}, line 1: --host must not be empty"),
        ('tokens = ""\n', "{file}, line 1: --tokens: a path must not be empty"),
        ('device = "tpu"\n', "{file}, line 1: --device: " + DEVICES + ", not 'tpu'"),
        ("max_seconds = nan\n", "{file}, line 1: --max-seconds must be a finite number, not nan"),
        ("port = 1\nport = 2\n", "{file}: not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        ("port: 1\n", "{file}: not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 5)"),
    ],
)
def test_wrong_files_are_refused_with_the_line(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, text)
    assert refusal(["--config", file], {}, capsys).startswith(message.format(file=file))


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none.toml"
    assert refusal(["--config", str(missing)], {}, capsys) == f"{missing}: No such file or directory"
    assert refusal([f"--config={tmp_path}"], {}, capsys) == f"{tmp_path}: Is a directory"
    assert refusal(["--config="], {}, capsys).startswith(".: ")


def test_unknown_flags_and_variables_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(["--max-batc=3"], {}, capsys) == "there is no flag --max-batc; did you mean --max-batch?"
    assert refusal(["--zebra"], {}, capsys) == "there is no flag --zebra"
    assert (
        refusal([], {"SPEAKERLENS_MAX_BATHC": "3"}, capsys)
        == "there is no variable SPEAKERLENS_MAX_BATHC; did you mean SPEAKERLENS_MAX_BATCH?"
    )
    assert (
        refusal([], {"SPEAKERLENS_REFLECTION": "nein"}, capsys)
        == "SPEAKERLENS_REFLECTION: --reflection must be true or false, not 'nein'"
    )
    assert parse([], {"SPEAKERLENS_CLIENT_SERVER": "h:1", "SPEAKERLENS_MAX_BATHC": ""}) == Config()


def test_the_printed_configuration_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = 'b "quoted" \\ \u00fc\x7f'
    file = write(tmp_path, "max_batch = 3\ndrain_seconds = 0.1\n")
    argv = ["--no-reflection", "--bundles", odd, "--config", file]
    environ = {"SPEAKERLENS_PORT": "7"}
    with pytest.raises(SystemExit) as caught:
        parse([*argv, "--print-config"], environ)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert f"max_batch = 3  # {file}, line 1" in lines
    assert "port = 7  # SPEAKERLENS_PORT" in lines
    assert "reflection = false  # --no-reflection" in lines
    assert 'host = "127.0.0.1"  # default' in lines
    assert parse(["--config", write(tmp_path, printed)], {}) == parse(argv, environ) != Config()
