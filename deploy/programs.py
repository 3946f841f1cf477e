"""Find programs in the virtual environment, where `make prometheus` puts them, or on the PATH."""

import os
import shutil
import sys
from pathlib import Path


def find(name: str) -> str | None:
    """Return the path of a program beside the interpreter or on the PATH; None if there is none."""
    return shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
