"""Check that what is here can be released.

    make release-check
    python -m deploy.release --only version,packages

* version: one version in the code, the chart and the citation; the changelog has it, if there is a tag of it;
* protos: `buf lint`, and `buf breaking` against the last tag;
* packages: an sdist, and the wheel that is built from it, pass `twine check` and hold what the program reads;
* environments: the wheel in empty environments, with the versions of the lock: commands of client, server and
  training; the server of one, with the demo's bundles, answers the client of another.

Exit status 1 if a part fails. What cannot be checked here (no npm, no tag yet) is said, and does not fail.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.image.sbom import ROOT, version

BUF = "@bufbuild/buf@1"
# What the programs read beside modules, in the wheel.
DATA = (
    "speakerlens/py.typed",
    "speakerlens/protos/bundle.schema.json",
    "speakerlens/protos/speakerlens/v1/identification.proto",
    "speakerlens/measures/",
    "speakerlens/web/",
    "speakerlens/demo.tar.xz",
    "speakerlens/training/configs/demo.yaml",
    "speakerlens/training/study/",
)
PROTOS = ("speakerlens/v1/identification.proto", "inference/inference.proto")
# By extra: what must work in an environment with nothing else.
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "client": (
        ("speakerlens", "--version"),
        ("speakerlens", "identify", "--help"),
        ("python", "-c", "import speakerlens.plot"),
    ),
    "cpu": (("speakerlens", "serve", "--print-config"), ("python", "-c", "import speakerlens.serving.server")),
    "train": (
        ("speakerlens", "train", "--help"),
        ("speakerlens", "prepare", "--help"),
        ("speakerlens", "evaluate", "--help"),
    ),
}


class CheckError(Exception):
    """A part of the check failed; the message is for the one who releases."""


class SkippedError(Exception):
    """A part cannot be checked here; the message says why."""


def main() -> int:
    """Run the parts, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PARTS", default="", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--extras", default=",".join(COMMANDS), help="of the empty environments (default: %(default)s)")
    parser.add_argument("--dist", metavar="DIR", type=Path, default=ROOT / "build" / "dist", help="for sdist and wheel")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    failed = 0
    for name in chosen:
        try:
            print(f"{name}: {PARTS[name](arguments)}", flush=True)
        except SkippedError as error:
            print(f"{name}: skipped: {error}", flush=True)
        except CheckError as error:
            print(f"{name}: FAILED: {error}", flush=True)
            failed += 1
    return 1 if failed else 0


def check_version(_arguments: argparse.Namespace) -> str:
    """Check that every file has the version of `speakerlens/_version.py`."""
    wanted = version()
    for name, pattern in (
        ("CITATION.cff", r"^version: (.+)$"),
        ("deploy/chart/Chart.yaml", r"^version: (.+)$"),
        ("deploy/chart/Chart.yaml", r"^appVersion: \"?([^\"\n]+)"),
    ):
        found = re.findall(pattern, (ROOT / name).read_text("utf-8"), re.MULTILINE)
        if found != [wanted]:
            raise CheckError(f"{name} says {', '.join(found) or 'nothing'}, speakerlens/_version.py {wanted}")
    tagged = f"v{wanted}" in _git("tag").split()
    if not changes((ROOT / "CHANGELOG.md").read_text("utf-8"), wanted if tagged else "Unreleased"):
        raise CheckError(f"CHANGELOG.md has no section for {wanted if tagged else 'Unreleased'}")
    return f"{wanted}{', tagged' if tagged else ', not tagged yet'}"


def changes(text: str, name: str) -> str:
    """Return the section of a version, or of `Unreleased`, in a changelog's text."""
    parts = re.split(r"^## \[([^\]]+)\].*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name, "").strip()


def check_protos(_arguments: argparse.Namespace) -> str:
    """Lint the wire contracts, and compare them with those of the last tag."""
    if shutil.which("npx") is None:
        raise SkippedError("npx is not installed, which fetches buf")
    tags = _git("tag", "--list", "v*", "--sort=-v:refname").split()
    with tempfile.TemporaryDirectory() as folder:
        now = staged(Path(folder) / "now", lambda name: (ROOT / "protos" / name).read_text("utf-8"))
        buf = ("npx", "--yes", BUF)
        if not _runs(*buf, "--version"):
            raise SkippedError("npx cannot fetch buf")
        _run(*buf, "lint", cwd=now)
        if not tags:
            return "buf lint passes; buf breaking has no tag to compare with"
        before = staged(Path(folder) / "before", lambda name: _git("show", f"{tags[0]}:protos/{name}"))
        _run(*buf, "breaking", "--against", str(before), cwd=now)
    return f"buf lint passes, and buf breaking against {tags[0]}"


def staged(folder: Path, read: Callable[[str], str]) -> Path:
    """Return a folder with the contracts in their place as packages: in the repository there are links to them."""
    for name in PROTOS:
        file = folder / "speakerlens" / "protos" / name
        file.parent.mkdir(parents=True)
        file.write_text(read(name), "utf-8")
    shutil.copy(ROOT / "protos" / "buf.yaml", folder)
    return folder


def check_packages(arguments: argparse.Namespace) -> str:
    """Build the sdist, and from it the wheel; check both."""
    dist: Path = arguments.dist
    shutil.rmtree(dist, ignore_errors=True)
    _run(
        sys.executable,
        "-m",
        "uv",
        "build",
        "--quiet",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--out-dir",
        str(dist),
    )
    with tempfile.TemporaryDirectory() as folder:
        twine = environment(Path(folder), ["twine"])
        _run(str(twine / "bin" / "twine"), "check", "--strict", *map(str, sorted(dist.glob("speakerlens-*"))))
    wheel = wheel_of(dist)
    names = zipfile.ZipFile(wheel).namelist()
    missing = [each for each in DATA if not any(name.startswith(each) for name in names)]
    foreign = sorted({name.partition("/")[0] for name in names} - {"speakerlens", f"speakerlens-{version()}.dist-info"})
    if missing or foreign:
        raise CheckError(f"{wheel.name}: missing {missing}, not expected {foreign}")
    return f"{', '.join(file.name for file in sorted(dist.glob('speakerlens-*')))}"


def wheel_of(dist: Path) -> Path:
    """Return the one wheel in a folder.

    Raises:
        CheckError: there is none, or several.
    """
    found = list(dist.glob(f"speakerlens-{version()}-*.whl"))
    if len(found) != 1:
        raise CheckError(f"{dist} has {len(found)} wheels of {version()}; run the part packages first")
    return found[0]


def check_environments(arguments: argparse.Namespace) -> str:
    """Install the wheel into empty environments, and run what it is for."""
    wheel = wheel_of(arguments.dist)
    done, homes = [], dict[str, Path]()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "lock.txt").write_text(constraints((ROOT / "requirements" / "dev.txt").read_text("utf-8")))
        words = ["--constraint", str(folder / "lock.txt")]
        words += ["--constraint", str(ROOT / "requirements" / "constraints.txt")]
        for extra in arguments.extras.split(","):
            homes[extra] = home = environment(folder / extra, [f"{wheel}[{extra}]"], words)
            _run(str(home / "bin" / "python"), "-m", "pip", "check", cwd=folder)
            for program, *rest in COMMANDS[extra]:
                _run(str(home / "bin" / program), *rest, cwd=folder)
            packages = json.loads(_run(str(home / "bin" / "python"), "-m", "pip", "list", "--format=json", cwd=folder))
            done.append(f"{extra} with {len(packages)} packages")
        if {"client", "cpu"} <= homes.keys():
            done.append(answered(homes["cpu"] / "bin", homes["client"] / "bin", folder))
    return ", ".join(done)


def answered(server: Path, client: Path, folder: Path) -> str:
    """Start the server of one environment on the demo's bundles, and ask it with the client of another.

    Args:
        server: programs of the server's environment.
        client: programs of the client's.
        folder: for the bundles.

    Raises:
        CheckError: the server does not start, or the client's command fails.
    """
    unpack = "import pathlib, sys; from speakerlens.demo import unpack; unpack(pathlib.Path(sys.argv[1]))"
    bundles = folder / "bundles"
    _run(str(server / "python"), "-c", unpack, str(bundles), cwd=folder)
    file = min(bundles.glob("*/*/utterances/*.flac"))
    words = [str(server / "speakerlens"), "serve", f"--bundles={bundles}", "--port=0", "--no-metrics"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*words, "--probe-seconds=0"], cwd=folder, env=_clean(), stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise CheckError(f"speakerlens serve: {(folder / 'log').read_text('utf-8')[-2000:]}")
            asked = (str(client / "speakerlens"), "identify", str(file), "--json", "--timeout=120", "--server")
            answer = json.loads(_run(*asked, json.loads(line)["grpc"], cwd=folder))
        finally:
            process.terminate()
    if process.returncode:
        raise CheckError(f"speakerlens serve ended with status {process.returncode} after SIGTERM")
    return f"the server answers the client with {len(answer['answers'])} models"


def constraints(lock: str) -> str:
    """Return a lock without hashes, which pip would want for the project's own wheel, too."""
    return "\n".join(re.findall(r"^[\w.\[\]-]+==[^\\\n]+", lock, re.MULTILINE)) + "\n"


def environment(folder: Path, packages: Sequence[str], options: Sequence[str] = ()) -> Path:
    """Return a folder with a virtual environment that has some packages and what they need."""
    venv.create(folder, with_pip=True)
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, *options, *packages)
    return folder


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "version": check_version,
    "protos": check_protos,
    "packages": check_packages,
    "environments": check_environments,
}


def _run(*command: str, cwd: Path = ROOT) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, env=_clean(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise CheckError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise CheckError(f"{' '.join(command[:4])}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _clean() -> dict[str, str]:
    """Return the variables without those whose folders would count as installed in an empty environment."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _runs(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(*arguments: str) -> str:
    return _run("git", *arguments)


if __name__ == "__main__":
    sys.exit(main())
