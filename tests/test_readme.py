"""The README's commands, as written there, on a small world."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speakerlens.training.data.manifest import load_corpus
from tests.conftest import ROOT
from tests.serving.harness import ServerProcess

README = (ROOT / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent


def block(language: str, holding: str) -> str:
    """The one fenced block in a language that holds a text."""
    blocks = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in b]
    assert len(blocks) == 1, f"{len(blocks)} blocks hold {holding!r}"
    return str(blocks[0])


def here(command: str) -> str:
    """A command of the README with this environment in place of .venv."""
    return command.replace(".venv/bin/", f"{shlex.quote(str(BIN))}/")


def call(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def own_speakers(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it, with the project's configurations in it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "training").mkdir()
    (folder / "training" / "configs").symlink_to(ROOT / "training" / "configs")
    clips = load_corpus(corpus).clips
    speakers = sorted({str(clip.speaker) for clip in clips if clip.kind == "utterance"})[:4]
    for clip in clips:
        if clip.kind == "utterance" and str(clip.speaker) in speakers:
            target = folder / "my-speakers" / str(clip.speaker)
        elif clip.kind == "noise":
            target = folder / "my-noise"
        else:
            continue
        target.mkdir(parents=True, exist_ok=True)
        # As few as the README asks for leave some of a speaker in every split, and make evaluation and export quick.
        if len(list(target.iterdir())) < 6:
            shutil.copy(clip.path, target)
    return folder


def test_five_lines_train_on_own_speakers(own_speakers: Path) -> None:
    *lines, serve = block("sh", "--speech my-speakers").strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        # As in the README, but for a shorter training of a smaller network.
        call(
            here(line)
            + (" --updates 8 --set network.blocks=[1,1,1,1] --set network.width=4" if " train " in line else ""),
            own_speakers,
        )
    assert (own_speakers / "build/mine/report.html").is_file()
    environment = {**os.environ, "SPEAKERLENS_PORT": "0", "SPEAKERLENS_METRICS_PORT": "0"}
    with subprocess.Popen(
        shlex.split(here(serve)), cwd=own_speakers, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        assert "act-da" in server.stdout.readline()
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def reader(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's example files."""
    folder = tmp_path_factory.mktemp("demo-reader")
    (folder / "build" / "demo").mkdir(parents=True)
    utterances = sorted((bundles / "clean" / "1" / "utterances").iterdir())
    for name, source in zip(("example-clean.flac", "example-corrupted.flac"), utterances, strict=False):
        shutil.copy(source, folder / "build" / "demo" / name)
    return folder


def test_shell_calls(reader: Path, server: ServerProcess) -> None:
    models, identify, piped, verify = block("sh", "speakerlens models").strip().splitlines()
    address = f" --server {server.ready['grpc']}"
    assert "act-da" in call(here(models) + address, reader).stdout
    assert "act-da" in call(here(identify) + address, reader).stdout
    assert (reader / "build" / "answer.png").read_bytes().startswith(b"\x89PNG")
    assert call(here(piped.replace(" <", f"{address} <")), reader).stdout.startswith("{")
    assert "(act-da@1: score " in call(here(verify) + address, reader).stdout


def test_python_call(reader: Path, server: ServerProcess) -> None:
    program = block("python", "SpeakerClient").replace("127.0.0.1:50051", server.ready["grpc"])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=reader, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("act-da@1 ")


def test_make_targets_are_there(tmp_path: Path) -> None:
    targets = set(re.findall(r"`make ([\w-]+)", README)) | set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    assert {"demo", "test", "serve", "help"} <= targets
    listed = call("make help", ROOT).stdout
    for target in targets:
        assert re.search(rf"make {target}\s", listed), target
        # With this environment marked as installed, make must know what it would do.
        (tmp_path / ".installed").touch()
        os.utime(tmp_path / ".installed", (time.time() + 60, time.time() + 60))
        call(f"make --dry-run VENV={shlex.quote(str(tmp_path))} {target}", ROOT)


def anchors(page: str) -> set[str]:
    """What a page's headings are called in links: lower case, words joined by hyphens, no other marks."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_pictures_and_pages_exist() -> None:
    assert anchors("# One\n```sh\n# two\n```\n## Someone else's `net`-work\n") == {"one", "someone-elses-net-work"}
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        file, _, anchor = target.partition("#")
        page = ROOT / (file or "README.md")
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page.read_text("utf-8")), target
