"""A real Triton Inference Server on Linux: fetched from the wheel of PyTriton, and started on a model repository."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

# Its Python backend reads arrays of numpy 1.
SERVER, LIBRARIES = "nvidia-pytriton==0.7.0", ("numpy<2", "onnxruntime==1.23.2")
READY = b"Started GRPCInferenceService"
READY_SECONDS = 180


def fetch(root: Path, libraries: tuple[str, ...] = LIBRARIES) -> None:
    """Install the server into `root/server` and the packages of its Python backend into `root/libraries`.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not (root / "server").exists():
        subprocess.run([*pip, "--no-deps", "--target", root / "server", SERVER], check=True)
        subprocess.run([*pip, "--target", root / "libraries", *libraries], check=True)
    home = _home(root)
    stub = home / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    shutil.copy(stub, home / "backends" / "python")
    for file in (home / "backends" / "python" / stub.name, home / "bin" / "tritonserver"):
        file.chmod(0o755)


def let_import(models: Path, root: Path) -> None:
    """Make the programs of a model repository find the packages: their interpreter has no variable for it."""
    for program in models.glob("*/*/model.py"):
        text = program.read_text("utf-8")
        program.write_text(f"import sys\nsys.path.insert(0, {str(root / 'libraries')!r})\n{text}", "utf-8")


def start(root: Path, models: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server on a model repository; return its process and the address of gRPC, which may not be ready."""
    home = _home(root)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    libraries = f"{root / 'server' / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    words = [str(home / "bin" / "tritonserver"), f"--model-repository={models}"]
    words.append(f"--backend-directory={home / 'backends'}")
    flags = [f"--grpc-port={port}", "--allow-http=false", "--allow-metrics=false"]
    with log.open("wb") as output:
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries}
        process = subprocess.Popen([*words, *flags], stdout=output, stderr=subprocess.STDOUT, env=environment)
    return process, f"127.0.0.1:{port}"


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it serves.

    Raises:
        RuntimeError: it ended, or is not ready in READY_SECONDS; has its log.
    """
    deadline = time.monotonic() + READY_SECONDS
    while READY not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Triton does not serve: {log.read_text('utf-8', 'replace')[-2000:]}")
        time.sleep(0.1)


def _home(root: Path) -> Path:
    return root / "server" / "pytriton" / "tritonserver"
