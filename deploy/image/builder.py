"""Build images and look into them, with docker where its engine runs, else with buildah."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from deploy.image.sbom import ROOT, version

BASE = "docker.io/library/python:3.11-slim"
# Made where no registry can be reached.
OWN_BASE = "localhost/speakerlens-base:latest"


class BuildError(Exception):
    """An image cannot be built or read; the message is the end of what the program wrote."""


def program() -> str:
    """Return the program that builds images here.

    Raises:
        BuildError: there is none.
    """
    if shutil.which("docker") and _succeeds("docker", "info"):
        return "docker"
    if shutil.which("buildah"):
        return "buildah"
    raise BuildError("neither a docker engine nor buildah is here (Debian: apt-get install buildah)")


def base_image() -> str:
    """Return a base image that can be had: BASE_IMAGE, python:3.11-slim, or Debian's Python by debootstrap.

    Raises:
        BuildError: there is none.
    """
    given = os.environ.get("BASE_IMAGE")
    if given:
        return given
    if program() == "docker" or _succeeds("buildah", "pull", "--quiet", BASE):
        return BASE
    if not _succeeds("buildah", "inspect", "--type", "image", OWN_BASE):
        run(str(ROOT / "deploy" / "image" / "base.sh"), OWN_BASE)
    return OWN_BASE


def frozen(folder: Path) -> dict[str, Any]:
    """Copy what an image is built from, so that several builds have the same sources even if files change.

    Args:
        folder: an empty one.

    Returns:
        The commit, whether files differ from it, the number of files, and a digest of names, modes and contents.

    Raises:
        BuildError: this is no checkout of git.
    """
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    paths = ["Dockerfile", ".dockerignore", *kept]
    names = run("git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", "--", *paths).split("\0")
    digest, count = hashlib.sha256(), 0
    for name in sorted(set(filter(None, names))):
        source, target = ROOT / name, folder / name
        if not source.is_symlink() and not source.is_file():  # removed, and git does not know yet
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
        linked = source.is_symlink()
        content = bytes(target.readlink()) if linked else target.read_bytes()
        kind = "link" if linked else "program" if os.access(target, os.X_OK) else "file"
        digest.update(f"{name}\0{kind}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        count += 1
    changed = run("git", "-C", str(ROOT), "status", "--porcelain", "--", *paths)
    return {"commit": revision(), "changed": bool(changed), "files": count, "sha256": digest.hexdigest()}


def revision() -> str:
    """Return the commit, or `unknown` outside of git."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def build(target: str, tag: str, *options: str, sources: Path = ROOT) -> None:
    """Build a stage of the Dockerfile.

    Args:
        target: the stage, such as `cpu`.
        tag: name of the image.
        options: of the program, such as `--no-cache`.
        sources: what it is built from, as `frozen` copies it.

    Raises:
        BuildError: the build fails.
    """
    words = [f"--build-arg=VERSION={version()}", f"--build-arg=REVISION={revision()}"]
    words += [f"--build-arg=BASE_IMAGE={base_image()}", f"--target={target}", f"--tag={tag}", *options]
    authority = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if authority:
        words.append(f"--secret=id=ca,src={authority}")
    if program() == "docker":
        run("docker", "build", *words, str(sources))
    else:
        # One time for the image and its folders, so that two builds have the same layers; files have it already.
        (epoch,) = re.findall(r"SOURCE_DATE_EPOCH=(\d+)", (sources / "Dockerfile").read_text("utf-8"))
        words += [f"--timestamp={epoch}"]
        # The format of docker keeps the health check.
        run("buildah", "bud", "--isolation=chroot", "--layers", "--format=docker", *words, str(sources))


def config(tag: str) -> dict[str, Any]:
    """Return an image's configuration, as `Env`, `Entrypoint`, `User`, `Labels` and `Healthcheck`."""
    if program() == "docker":
        found: dict[str, Any] = json.loads(run("docker", "image", "inspect", tag))[0]["Config"]
        return found
    document = json.loads(run("buildah", "inspect", "--type", "image", tag))
    return dict(document["Docker"]["config"])


def layers(tag: str) -> list[tuple[str, int]]:
    """Return what made each layer of an image, and its size without compression, in bytes."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if program() == "docker":
            run("docker", "save", "--output", str(folder / "image.tar"), tag)
            run("tar", "-C", text, "-xf", str(folder / "image.tar"))
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))[0]
            document = json.loads((folder / manifest["Config"]).read_text("utf-8"))
            sizes = [(folder / name).stat().st_size for name in manifest["Layers"]]
        else:
            run("buildah", "push", "--quiet", "--disable-compression", tag, f"dir:{text}/image")
            manifest = json.loads((folder / "image" / "manifest.json").read_text("utf-8"))
            named = {
                part["digest"]: folder / "image" / part["digest"].removeprefix("sha256:") for part in manifest["layers"]
            }
            document = json.loads(
                (folder / "image" / manifest["config"]["digest"].removeprefix("sha256:")).read_text("utf-8")
            )
            sizes = [named[part["digest"]].stat().st_size for part in manifest["layers"]]
    made = [each.get("created_by", "") for each in document["history"] if not each.get("empty_layer")]
    return list(zip(made, sizes, strict=True))


def digests(tag: str) -> list[str]:
    """Return the digest of each layer of an image, without compression."""
    if program() == "docker":
        return list(json.loads(run("docker", "image", "inspect", tag))[0]["RootFS"]["Layers"])
    return list(json.loads(run("buildah", "inspect", "--type", "image", tag))["Docker"]["rootfs"]["diff_ids"])


def files(tag: str, path: str) -> dict[str, str]:
    """Return type, mode, time and digest of each file below a folder of an image, by its path."""
    program_text = (
        "import hashlib, os, stat, sys\n"
        "for folder, _, names in os.walk(sys.argv[1]):\n"
        "    for name in names:\n"
        "        path = os.path.join(folder, name)\n"
        "        facts = os.lstat(path)\n"
        "        data = os.readlink(path).encode() if stat.S_ISLNK(facts.st_mode) else open(path, 'rb').read()\n"
        "        print(path, oct(facts.st_mode), int(facts.st_mtime), hashlib.sha256(data).hexdigest(), sep='\\t')\n"
    )
    if program() == "docker":
        text = run("docker", "run", "--rm", "--user=0", "--entrypoint=python", tag, "-c", program_text, path)
    else:
        container = run("buildah", "from", tag).strip()
        try:
            text = run(
                "buildah", "run", "--isolation=chroot", "--user=0", container, "--", "python", "-c", program_text, path
            )
        finally:
            run("buildah", "rm", container)
    return dict(line.split("\t", 1) for line in text.splitlines())


def run(*command: str) -> str:
    """Return what a command prints.

    Raises:
        BuildError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:3])}: {(done.stderr or done.stdout)[-1500:]}")
    return done.stdout


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
