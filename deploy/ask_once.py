"""Start the server, send it utterances through the client's command line, keep its metrics page, stop it."""

import argparse
import json
import subprocess
import sys
import urllib.request
from pathlib import Path


def main() -> int:
    """Run once; return the exit code of the step that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="utterances to identify")
    parser.add_argument("--bundles", metavar="DIR", type=Path, required=True, help="folder of the bundles")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for plots and metrics")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "serving", "--bundles", str(arguments.bundles), "--port=0", "--metrics-port=0"]
    command.append("--log-level=warning")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()  # written when the models are warm; empty if the server did not start
        if not line:
            return server.wait() or 1
        try:
            ready = json.loads(line)
            identified = _identify(ready["grpc"], arguments.files, arguments.out / "answer.png")
            with urllib.request.urlopen(ready["metrics"], timeout=10) as page:  # noqa: S310
                (arguments.out / "metrics.txt").write_bytes(page.read())
        finally:
            server.terminate()
            try:
                stopped = server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                stopped = 1
    print(f"metrics written to {arguments.out / 'metrics.txt'}; the server stopped with exit code {stopped}")
    return identified or stopped


def _identify(address: str, files: list[Path], plot: Path) -> int:
    command = [str(Path(sys.executable).parent / "speakerlens"), "identify", *map(str, files), "--server", address]
    return subprocess.run([*command, "--variants", "all", "--explain", "--plot", str(plot)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
