"""The lock in requirements/: complete, hashed, and without any index."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FOLDER = ROOT / "requirements"
LOCKS = {
    "dev": ("cpu", "client", "formats", "archive", "http", "postgres", "otel", "train", "demo", "docs", "dev"),
    "serve-cpu": ("cpu", "postgres", "http"),
    "serve-gpu": ("gpu", "postgres", "http"),
    "bench": ("bench", "train"),
    "serve-gpu-cuda12": ("gpu-cuda12", "postgres", "http"),
}
every_lock = pytest.mark.parametrize("name", [*LOCKS, "build"])


def pinned(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock; markers may give it several."""
    found: dict[str, set[str]] = {}
    for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
        if match := re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^ ;\\]+)", line):
            found.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_lock_satisfies_pyproject(name: str) -> None:
    versions = pinned(name)
    texts = [
        *PROJECT["dependencies"],
        *(text for extra in LOCKS[name] for text in PROJECT["optional-dependencies"][extra]),
    ]
    for wanted in map(Requirement, texts):
        if wanted.name == "torch":
            continue
        have = versions.get(canonicalize_name(wanted.name), set())
        assert have, f"{wanted.name} is not in requirements/{name}.txt: run `make lock`"
        assert all(wanted.specifier.contains(version) for version in have), f"{wanted}: run `make lock`"


@every_lock
def test_every_package_has_a_hash(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text("utf-8")
    for entry in re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()):
        assert "--hash=sha256:" in entry, entry


@every_lock
def test_lock_names_no_index(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text("utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index|--find-links|(?<![\w.-])/\w", text)


def test_torch_is_pinned_by_version_alone() -> None:
    assert not {"torch", "triton"} & pinned("dev").keys()
    assert re.search(r"^torch==[\d.]+$", (FOLDER / "constraints.txt").read_text("utf-8"), re.MULTILINE)
