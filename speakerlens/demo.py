"""The command `speakerlens demo`: a server with three trained models of synthetic voices, and its page in the browser.

The bundles are part of the package; they are unpacked once, into the user's cache.
"""

import hashlib
import importlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

from speakerlens.arguments import ArgumentParser

ARCHIVE = "demo.tar.xz"
DEFAULT_PORT = 8080
FLAGS = ("--port=0", "--metrics-port=0", "--probe-seconds=0", "--log-level=warning")
DESCRIPTION = """Serve three demo models, trained on synthetic voices, and a page in the browser to try them: who is
speaking, which parts of the sound each model used, and what interference does to that. The voices and the words are not
those of real people. Options after -- are those of `speakerlens serve`."""


def main(argv: Sequence[str] | None = None, program: str = "speakerlens demo") -> int:
    """Run the command; return the exit status of the server."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, rest = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = ArgumentParser(prog=program, description=DESCRIPTION)
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        metavar="N",
        help="of the page; 0: chosen by the system (default: %(default)s)",
    )
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="where to unpack the models (default: the cache)")
    arguments = parser.parse_args(own)
    importlib.import_module("starlette")  # of the extra: what is missing is said before anything else is done
    server = importlib.import_module("speakerlens.serving.__main__")
    bundles = unpack(arguments.bundles)
    flags = [f"--bundles={bundles}", f"--http-port={arguments.port}", *FLAGS]
    sys.stderr.write("loading three models …\n")
    code: int = server.main([*flags, *rest], program="speakerlens serve", announce=announce)
    return code


def announce(facts: Mapping[str, Any]) -> str:
    """Return the line that says where the page is."""
    return f"Open {facts['http']} in a browser. Ctrl-C ends the demo."


def unpack(folder: Path | None = None) -> Path:
    """Unpack the bundles unless they are there; return their folder.

    Args:
        folder: None for one in the user's cache, by the archive's digest.
    """
    content = resources.files("speakerlens").joinpath(ARCHIVE).read_bytes()
    if folder is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "speakerlens" / f"demo-{hashlib.sha256(content).hexdigest()[:12]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not at all, also where two processes unpack at once.
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            archive.extractall(Path(made) / "bundles", filter="data")
        try:
            (Path(made) / "bundles").rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder
