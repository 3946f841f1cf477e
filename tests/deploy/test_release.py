"""What the check of a release compares and prepares; the slow test builds and installs the packages."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy import release
from speakerlens import __version__
from tests.conftest import ROOT


def test_version_is_the_same_everywhere() -> None:
    assert release.check_version(argparse.Namespace()).startswith(__version__)


def test_other_version_in_the_chart_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CITATION.cff", "CHANGELOG.md", "deploy/chart/Chart.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text("utf-8")
        (tmp_path / name).write_text(text.replace(f"appVersion: {__version__}", "appVersion: 0.0.9"), "utf-8")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    with pytest.raises(release.CheckError, match=rf"Chart.yaml says 0.0.9, speakerlens/_version.py {__version__}"):
        release.check_version(argparse.Namespace())


def test_section_of_a_version_is_found() -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n\n- new\n\n## [1.1.0]\n- old\n"
    assert release.changes(text, "1.2.0") == "- new"
    assert release.changes(text, "1.1.0") == "- old"
    assert release.changes(text, "Unreleased") == release.changes(text, "2") == ""


def test_contracts_are_staged_where_they_import_each_other(tmp_path: Path) -> None:
    release.staged(tmp_path, lambda name: (ROOT / "protos" / name).read_text("utf-8"))
    found = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.proto")}
    assert found == {str(Path("speakerlens") / file.relative_to(ROOT)) for file in (ROOT / "protos").rglob("*.proto")}
    assert yaml.safe_load((tmp_path / "buf.yaml").read_text("utf-8"))["version"] == "v2"


def test_constraints_are_the_lock_without_hashes() -> None:
    lines = release.constraints((ROOT / "requirements" / "dev.txt").read_text("utf-8")).splitlines()
    assert len(lines) > 80
    assert not any("hash" in line or "\\" in line for line in lines)
    assert any(line.startswith("grpcio==") for line in lines)


def test_part_that_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["release", "--only", "version,nothing"])
    with pytest.raises(SystemExit):
        release.main()
    assert "there is no part nothing" in capsys.readouterr().err


def test_workflow_checks_before_it_publishes() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))["jobs"]
    assert jobs["packages"]["needs"] == jobs["images"]["needs"] == "check"
    commands = [step.get("run", "") for step in jobs["check"]["steps"]]
    targets = {
        word
        for command in commands
        for line in command.splitlines()
        if line.startswith("make ")
        for word in line.split()[1:]
    }
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(f"\n{target}:" in makefile for target in targets)
    assert {"test", "release-check", "image-test", "sbom"} <= targets


@pytest.mark.slow
@pytest.mark.process
def test_packages_install_into_empty_environments(tmp_path: Path) -> None:
    """Of the client and the server, which answers; training's, with torch, are in `make release-check`."""
    command = [sys.executable, "-m", "deploy.release", "--only", "packages,environments", "--extras", "client,cpu"]
    done = subprocess.run([*command, "--dist", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "the server answers the client with 3 models" in done.stdout
