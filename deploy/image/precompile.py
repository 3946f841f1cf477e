"""Compile what the server and its client load, and nothing else: half of the modules of the packages never run.

    /opt/speakerlens/bin/python -B deploy/image/precompile.py

In a read-only container Python could not keep what it compiles. Without times in them, the files are the same in each
build. What is not found here is compiled where it is used.
"""

import importlib
import py_compile
import sys
from pathlib import Path

LOADED = (
    "speakerlens.serving.server",
    "speakerlens.serving.__main__",
    "speakerlens.serving.http.server",
    "speakerlens.cli.main",
    "speakerlens.aio",
    "speakerlens.client",
    "speakerlens.probe",
    "psycopg_pool",
    "soundfile",
)


def main() -> None:
    """Import, and compile what that brought into memory from this environment."""
    for name in LOADED:
        importlib.import_module(name)
    home = Path(sys.prefix)
    loaded = [getattr(each, "__file__", None) for each in list(sys.modules.values())]
    files = {Path(name) for name in loaded if name}
    chosen = sorted(file for file in files if file.suffix == ".py" and home in file.parents)
    for file in chosen:
        py_compile.compile(str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    print(f"compiled {len(chosen)} modules")


if __name__ == "__main__":
    main()
