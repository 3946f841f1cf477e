"""Fetch the locked onnxruntime-gpu and compile the stand-ins of CUDA for it.

    python -m tests.fake_cuda.fetch FOLDER

With `PYTHONPATH=FOLDER/packages` and `LD_LIBRARY_PATH=FOLDER/libraries`, ONNX Runtime has a GPU that computes nothing.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.fake_cuda.build import build

LOCK = ROOT / "requirements" / "serve-gpu.txt"
# The runtime's package for its headers alone.
PACKAGES = ("onnxruntime-gpu", "nvidia-cuda-runtime")


def fetch(folder: Path) -> None:
    """Fill an empty folder: 256 MB by pip, and what gcc makes of it.

    Raises:
        OSError: gcc or binutils are missing.
        subprocess.CalledProcessError: a download or a compilation failed.
    """
    for program in ("gcc", "nm", "readelf"):
        if shutil.which(program) is None:
            raise FileNotFoundError(f"{program} is not installed")
    text = LOCK.read_text("utf-8")
    starts = tuple(f"{name}==" for name in PACKAGES)
    entries = [entry for entry in re.split(r"\n(?=[a-z])", text) if entry.startswith(starts)]
    (folder / "lock.txt").write_text(
        "\n".join(re.sub(r"^ +#.*\n?", "", entry, flags=re.MULTILINE) for entry in entries)
    )
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--require-hashes"]
    command += ["--target", str(folder / "packages"), "--requirement", str(folder / "lock.txt")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    packages = folder / "packages"
    (headers,) = (file.parent for file in packages.glob("nvidia/*/include/driver_types.h"))
    (folder / "libraries").mkdir()
    build(packages / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so", headers, folder / "libraries")
    # CUDA's own libraries would be loaded instead of the stand-ins.
    shutil.rmtree(packages / "nvidia")


if __name__ == "__main__":
    made = Path(sys.argv[1])
    made.mkdir(parents=True, exist_ok=True)
    fetch(made)
