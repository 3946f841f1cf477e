"""Programs that are not Python's: where `make prometheus` puts them, or anywhere on the PATH."""

import os
import shutil
import sys
from pathlib import Path


def find(name: str) -> str | None:
    """Where a program is: beside the interpreter, or on the PATH."""
    return shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
