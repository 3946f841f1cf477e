"""The command `speakerlens` as the entry to all parts: overview, versions, mistyped words, completion."""

import importlib
import subprocess
import tomllib
from pathlib import Path

import pytest

from speakerlens import __version__
from speakerlens.cli.main import CLIENT, PARTS, main
from speakerlens.training import cli as training

from .conftest import Command, speakerlens


def test_console_script_is_this_command() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["speakerlens"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_overview_lists_every_command_of_every_part(command: Command) -> None:
    text = command("--help").stdout
    for name in (*CLIENT, *PARTS, "completion"):
        assert f"\n  {name} " in text
    assert set(training.COMMANDS) - {"fit"} <= PARTS.keys()  # whose name here is `train`


def test_help_needs_neither_numpy_nor_grpc() -> None:
    program = "import sys; from speakerlens.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    check = "sys.exit([name for name in ('numpy', 'grpc', 'asyncio') if name in sys.modules])"
    done = speakerlens(program=("-c", program + check))
    assert "usage: speakerlens" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("words", [[], ["identify"], ["serve"], ["train"], ["export"], ["completion"]])
def test_version_is_printed_by_every_command(command: Command, words: list[str]) -> None:
    done = command(*words, "--version")
    assert (done.returncode, done.stdout) == (0, f"speakerlens {__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: a command is missing (see speakerlens --help)"),
        (["idenfity"], "error: there is no command 'idenfity'; did you mean identify? (see speakerlens --help)"),
        (["trian"], "error: there is no command 'trian'; did you mean train? (see speakerlens --help)"),
        (["models", "ad"], "error: there is no command 'models ad'; did you mean models add? (see speakerlens --help)"),
        (["--versio"], "error: there is no flag --versio; did you mean --version? (see speakerlens --help)"),
        (
            ["identify", "x.wav", "--varaints=da"],
            "speakerlens: there is no flag --varaints; did you mean --variants? (see speakerlens identify --help)",
        ),
        (["speakers", "all"], "speakerlens: unexpected argument 'all' (see speakerlens speakers --help)"),
        (["serve", "--prot=1"], "error: there is no flag --prot; did you mean --port? (see speakerlens serve --help)"),
        (
            ["export", "runs", "--ot=x"],
            "error: there is no flag --ot; did you mean --out? (see speakerlens export --help)",
        ),
        (
            ["completion", "tcsh"],
            "error: argument shell: invalid choice: 'tcsh' (choose from 'bash', 'zsh', 'fish') "
            "(see speakerlens completion --help)",
        ),
    ],
)
def test_mistyped_words_get_the_nearest(command: Command, words: list[str], message: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("export", "torch", "train"), ("train", "torch", "train")],
)
def test_missing_extra_of_a_part_is_named(name: str, missing: str, extra: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom speakerlens.cli.main import main\nsys.exit(main())"
    done = speakerlens(name, "--help", program=("-c", program))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ")
    assert f"pip install 'speakerlens[{extra}]'" in done.stderr


def test_bash_completes_commands_and_flags(command: Command) -> None:
    script = command("completion", "bash").stdout
    for words, expected in (
        ("id", ["identify"]),
        ("identify --t", ["--top-k", "--target", "--timeout", "--tls", "--tls-ca"]),
        ("serve --bundle", ["--bundles"]),
        ("completion f", ["fish"]),
    ):
        count = len(words.split())
        call = (
            f"COMP_WORDS=(speakerlens {words}); COMP_CWORD={count}; _speakerlens; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", f"{script}\n{call}"], capture_output=True, text=True, check=True)
        assert done.stdout.split()[: len(expected)] == expected


@pytest.mark.parametrize(("shell", "line"), [("zsh", "#compdef speakerlens"), ("fish", "-f -a identify -d")])
def test_completion_of_other_shells_has_every_command(command: Command, shell: str, line: str) -> None:
    script = command("completion", shell).stdout
    assert line in script
    assert all(name in script for name in (*CLIENT, *PARTS))
    assert "top-k" in script
