"""Run a Prometheus process with its storage in a folder, on a free port."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from deploy.programs import find
from deploy.prometheus_api import Prometheus

JOB = "speakerlens"
START_SECONDS = 60.0
STOP_SECONDS = 30.0


class PrometheusProcess(Prometheus):
    """A Prometheus that scrapes servers and evaluates rules until the end of its `with`.

    Args:
        folder: for its configuration, storage and log; is created if it does not exist.
        targets: HOST:PORT of the servers' metrics pages.
        rules: files of recording rules and alerts.
        interval: between two scrapes and between two evaluations of rules, in seconds.

    Raises:
        RuntimeError: the program is not installed, or does not start; the message holds its log.
    """

    def __init__(self, folder: Path, targets: Sequence[str], rules: Sequence[Path] = (), interval: float = 1.0) -> None:
        program = find("prometheus")
        if program is None:
            raise RuntimeError("prometheus is not installed (`make prometheus` fetches it on Debian)")
        folder.mkdir(parents=True, exist_ok=True)
        self.interval = interval
        self._log = folder / "prometheus.log"
        every = f"{round(1000 * interval)}ms"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(file.resolve()) for file in rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
        }
        file = folder / "prometheus.json"
        file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        address = f"127.0.0.1:{_free_port()}"
        super().__init__(f"http://{address}")
        command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            self.wait_for(self._ready, START_SECONDS)
        except BaseException:
            self.close()
            raise

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        """Return once the condition is true.

        Raises:
            RuntimeError: it is not true in time, or the process has ended.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                written = self._log.read_text("utf-8")[-4000:]
                raise RuntimeError(f"the condition did not become true; Prometheus wrote:\n{written}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):  # noqa: S310
                return True
        except urllib.error.URLError:
            return False

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()

    def __enter__(self) -> "PrometheusProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
