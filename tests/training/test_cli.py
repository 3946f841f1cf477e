import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from speakerlens.training.cli import COMMANDS, main
from tests.training.toy import TOY_CONFIG, make_corpus, write_config


def test_help_lists_every_command_without_loading_torch() -> None:
    program = (
        "import sys; from speakerlens.training.cli import main\n"
        "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_fit_explains_its_options_and_variants(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("--config", "--variant", "--corpus", "--out", "--device", "--seed", "--updates", "--set", "da-pair"):
        assert word in text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"python -m training {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--config": "{tmp}/none.yaml"}, "none.yaml: No such file"),
        ({"--corpus": "{tmp}/none"}, "none: no manifest.jsonl to read"),
        ({"--updates": "0"}, "updates must be at least 1, not 0"),
        ({"--seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"--set": "network.width=100000000"}, "network.width must be at most 1024, not 100000000"),
        ({"--set": "network.embedding=100000000"}, "network.embedding must be at most 65536"),
        ({"--set": "network.blocks=[1,1,1,100000000]"}, "network.blocks[3] must be at most 1000"),
        ({"--set": "data.batch_size=100000000"}, "data.batch_size must be at most 1000000"),
        ({"--set": "seed=" + "[" * 10_000}, "not valid YAML: nested too deeply"),
        ({"--set": "optimizer.kind=sgd"}, 'unknown key "optimizer" in the file; did you mean optimiser?'),
        ({"--out": "{tmp}/toy.yaml"}, "toy.yaml: cannot be made a folder (a file is in the way)"),
        ({"--out": "{tmp}/toy.yaml/run"}, "run: cannot be made a folder (a file is in the way)"),
        ({"--device": "cuda"}, "--device cuda: torch finds no CUDA device"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    make_corpus(tmp_path / "corpus", seconds=0.2, interference=False)
    options = {
        "--config": str(write_config(tmp_path, TOY_CONFIG)),
        "--variant": "clean",
        "--corpus": str(tmp_path / "corpus"),
        "--out": str(tmp_path / "run"),
    }
    options |= {key: value.format(tmp=tmp_path) for key, value in changes.items()}
    assert main(["fit", *(word for option in options.items() for word in option)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "log.jsonl"), 2, "log.jsonl: No space left on device"),
        (MemoryError("Unable to allocate 1 TiB"), 2, "too little memory for this network, batch or corpus: Unable to"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried"), 2, "can't allocate memory: you tried"),
        (RuntimeError("CUDA out of memory."), 2, "CUDA out of memory."),
        (RuntimeError("a mistake of the program"), None, ""),
        (OSError(errno.EIO, "Input/output error"), None, ""),
    ],
)
def test_lack_of_room_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int | None,
    message: str,
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("speakerlens.training.fit.run", fail)
    words = ["fit", "--config=c", "--variant=clean", "--corpus=x", "--out=y"]
    if code is None:
        with pytest.raises(type(error)):
            main(words)
        return
    assert main(words) == code
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text


def test_corpus_of_one_speaker_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "corpus", seconds=0.2, interference=False)
    manifest = corpus.root / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line).get("speaker") in (None, corpus.speakers[0])]
    manifest.write_text("\n".join(kept) + "\n", encoding="utf-8")
    config = write_config(tmp_path, TOY_CONFIG)
    options = [f"--config={config}", "--variant=clean", f"--corpus={corpus.root}", f"--out={tmp_path / 'run'}"]
    assert main(["fit", *options]) == 2
    assert "corpus: has one speaker, " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(module: str) -> None:
        raise ModuleNotFoundError(f"No module named 'torch' (for {module})", name="torch")

    monkeypatch.setattr("importlib.import_module", refuse)
    assert main(["fit", "--help"]) == 2
    assert capsys.readouterr().err == "error: torch is not installed; training needs pip install 'speakerlens[train]'\n"


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fot"])
    assert end.value.code == 2
    assert "fot" in capsys.readouterr().err
