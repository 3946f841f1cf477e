import os
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from speakerlens.training import checkpoint as module
from speakerlens.training.checkpoint import CHECKPOINT, code_revision, load_run, read_checkpoint, write_checkpoint
from speakerlens.training.config import Config
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.loop import Trainer
from tests.training.toy import SPEAKERS


@pytest.fixture(scope="module")
def trainer(config: Config, corpus: Corpus) -> Trainer:
    return Trainer(config, "act-da", corpus, torch.device("cpu"))


@pytest.fixture
def run(trainer: Trainer, tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, trainer.checkpoint(6))
    return tmp_path


def test_loaded_run_equals_the_saved_one(trainer: Trainer, run: Path) -> None:
    loaded = load_run(run)
    assert (loaded.variant, loaded.speakers, loaded.step, loaded.finished) == ("act-da", SPEAKERS, 6, True)
    assert loaded.config == trainer.config
    assert loaded.corpus.is_absolute()
    assert (loaded.corpus / "manifest.jsonl").is_file()
    assert len(loaded.corpus_digest) == 64
    assert not loaded.network.training
    audio = torch.randn(2, 4800)
    trainer.network.eval()
    assert torch.equal(loaded.network(audio)[0], trainer.network(audio)[0])
    trainer.network.train()


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint\.pt; give the folder of a training run"):
        load_run(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_damaged_checkpoint_is_refused(run: Path, keep: float) -> None:
    content = (run / CHECKPOINT).read_bytes()
    size = int(keep * len(content)) if keep < 1 else int(keep)
    (run / CHECKPOINT).write_bytes(content[:size])
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged, or not a checkpoint"):
        load_run(run)


def test_file_of_random_bytes_is_refused(tmp_path: Path) -> None:
    """Bytes that lead the unpickler to an IndexError."""
    (tmp_path / CHECKPOINT).write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged, or not a checkpoint"):
        load_run(tmp_path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)], ids=["dictionary", "list", "tensor"])
def test_checkpoint_of_another_program_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        load_run(tmp_path)


class Evil:
    """Pickles to a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    torch.save({"network": Evil(tmp_path / "pwned")}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load_run(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_weights_that_do_not_fit_are_refused(trainer: Trainer, run: Path) -> None:
    saved = trainer.checkpoint(6)
    saved["speakers"] = [*saved["speakers"], "one too many"]
    write_checkpoint(run, saved)
    with pytest.raises(UserError, match="its weights do not fit its own configuration"):
        load_run(run)


def test_unknown_checkpoint_format_is_refused(trainer: Trainer, run: Path) -> None:
    saved = trainer.checkpoint(6)
    saved["format"] = 99
    write_checkpoint(run, saved)
    with pytest.raises(UserError, match="has format 99, this version reads 2"):
        load_run(run)


def test_format_without_average_is_read(trainer: Trainer, run: Path) -> None:
    saved: dict[str, Any] = {**trainer.checkpoint(6), "format": 1}
    del saved["average"]
    torch.save(saved, run / CHECKPOINT)
    loaded = load_run(run)
    assert all(torch.equal(value, saved["network"][name]) for name, value in loaded.network.state_dict().items())
    assert read_checkpoint(run)["average"] == {}


def test_failed_write_keeps_the_old_checkpoint(trainer: Trainer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_halfway(content: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(28, "disk full")

    monkeypatch.setattr(torch, "save", break_halfway)
    with pytest.raises(UserError, match="disk full"):
        write_checkpoint(run, trainer.checkpoint(7))
    monkeypatch.undo()
    assert read_checkpoint(run)["step"] == 6
    assert [path.name for path in run.iterdir()] == [CHECKPOINT]


def test_full_disk_is_one_line_and_keeps_the_old_checkpoint(trainer: Trainer, run: Path) -> None:
    """What torch raises for it differs by where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 100, 5000):
        checkpoint = trainer.checkpoint(7)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(UserError) as caught:
                write_checkpoint(run, checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert re.fullmatch(
            rf"{run / CHECKPOINT}: cannot be written \([^()\n]+\); make room for it and repeat the command, which "
            "resumes from the checkpoint before",
            str(caught.value),
        ), caught.value
        assert read_checkpoint(run)["step"] == 6
        assert [path.name for path in run.iterdir()] == [CHECKPOINT]


def test_code_revision_of_a_checkout_is_git_describe() -> None:
    root = Path(module.__file__).resolve().parents[1]  # through the link below `speakerlens`
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    tagged = subprocess.run(["git", "-C", str(root), "tag"], capture_output=True, text=True, check=True).stdout.strip()
    assert tagged or code_revision.__wrapped__().startswith(head.stdout[:7])


def test_code_revision_without_checkout_is_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = subprocess.run(["git", "-C", str(tmp_path), "rev-parse"], capture_output=True, check=False)
    assert outside.returncode != 0
    monkeypatch.setattr(module, "__file__", str(tmp_path / "training" / "checkpoint.py"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 9.9")
    assert code_revision.__wrapped__() == "speakerlens 9.9"
