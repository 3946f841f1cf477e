"""The origin of a report: time, command, data, machine and versions."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from speakerlens.training.checkpoint import code_revision
from speakerlens.training.data.manifest import Corpus

_PACKAGES = ("speakerlens", "torch", "numpy", "scipy", "soundfile", "soxr", "matplotlib")


def moment() -> dict[str, object]:
    """Return the time, the command line and the code revision of this process."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "training", *sys.argv[1:]]),
        "code_revision": code_revision(),
    }


def tested(corpus: Corpus) -> dict[str, object]:
    """Return a corpus's digest and the size of its test split."""
    utterances = corpus.utterances("test")
    return {
        "digest": corpus.digest,
        "speakers": len(corpus.speakers),
        "test_utterances": len(utterances),
        "test_seconds": round(sum(clip.duration for clip in utterances), 1),
    }


def machine(device: torch.device) -> dict[str, object]:
    """Return the device, processor, threads and operating system."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _processor() -> str:
    """Return the processor's name, from /proc where `platform` does not know it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
