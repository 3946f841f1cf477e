"""A real PostgreSQL in a temporary folder, run by an ordinary user."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

USER = "nobody"
ORDINARY_USER: dict[str, Any] = {"user": USER, "group": "nogroup", "extra_groups": []}
DATABASES = "/usr/lib/postgresql"


def programs() -> Path | None:
    """Return the folder of Debian's programs, or of those that `deploy/postgres/fetch.sh` fetched; None without."""
    fetched = Path(sys.executable).parent.parent / "postgres"
    folders = sorted(fetched.glob("usr/lib/postgresql/*/bin")) + sorted(Path(DATABASES).glob("*/bin"))
    found = [folder for folder in folders if (folder / "initdb").exists()]
    if found:
        return found[-1]
    path = shutil.which("initdb")
    return None if path is None else Path(path).resolve().parent


def open_to_ordinary_user(folder: Path, free: Path) -> Path:
    """Return the folder of the programs; of their copy in `free` where the ordinary user may not enter it.

    PostgreSQL refuses to run as root, and what was fetched may lie below a home that is closed to others.
    """
    if os.getuid() != 0:
        return folder
    try:
        subprocess.run([folder / "initdb", "--version"], check=False, capture_output=True, cwd="/", **ORDINARY_USER)
    except PermissionError:
        prefix = folder.parents[3]  # of usr/lib/postgresql/VERSION/bin
        return shutil.copytree(prefix, free / "usr", symlinks=True) / folder.relative_to(prefix)
    return folder


class Postgres:
    """A database server on a port of its own; `start` and `kill` may be repeated."""

    def __init__(self) -> None:
        folder = programs()
        if folder is None:
            if os.environ.get("REQUIRE_POSTGRES"):
                pytest.fail("PostgreSQL's programs are missing; deploy/postgres/fetch.sh fetches them")
            pytest.skip("needs PostgreSQL (make postgres fetches it)")
        self._own: dict[str, Any] = ORDINARY_USER if os.getuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._programs = folder = open_to_ordinary_user(folder, self.folder)
        libraries = folder.parents[3] / "lib" / f"{os.uname().machine}-linux-gnu"
        environment = {"LC_ALL": "C", "LD_LIBRARY_PATH": str(libraries) if libraries.exists() else ""}
        self._own = {**self._own, "env": {**os.environ, **environment}}
        self.folder.chmod(0o700)
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "speakers", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.process: subprocess.Popen[Any] | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], check=True, capture_output=True, cwd=self.folder, **self._own
        )

    def start(self) -> None:
        # Fsync protects from a failure of the machine, not of the process.
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=60")
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for setting in settings:
            command += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._own)
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        import psycopg  # noqa: PLC0415  (an extra)

        try:
            self.execute("postgres", "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End the server and all its processes at once."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()
        self.process = None

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def execute(self, database: str, statement: str) -> None:
        import psycopg  # noqa: PLC0415  (an extra)

        with psycopg.connect(self.address(database), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    def address(self, database: str) -> str:
        return f"postgresql://speakers@127.0.0.1:{self.port}/{database}"

    def make(self, database: str) -> str:
        """Make a database, and return its address."""
        self.execute("postgres", f"CREATE DATABASE {database}")
        return self.address(database)
