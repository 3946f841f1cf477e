"""The environment of a benchmark run, recorded with its results."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "grpcio", "numpy")


def environment(*more: str) -> dict[str, Any]:
    """Return date, machine, versions of packages, `more` among them, load, and the commit, with a + if files differ."""
    versions = {name: found for name in (*PACKAGES, *more) if (found := _of(name))}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), **versions},
    }


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()


def _of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
