"""Values read from files, and reloaded when the files change."""

import logging
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

_Signature = tuple[tuple[int, int, int] | None, ...]


class ReloadingFile(Generic[T]):
    """The value of some files; when reloading fails, the previous value stays and the log has one line.

    Each use costs a `stat` per file. Thread-safe.

    Args:
        what: name for the log, such as `tokens`.
        paths: the files.
        read: returns the value; raises OSError or ValueError with a sentence for the operator.

    Raises:
        OSError: the first reading failed.
        ValueError: likewise.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._signature = self._sign()
        self._value = read()

    def value(self) -> T:
        """Return the value of the files as they are, or as they last were valid."""
        with self._lock:
            signature = self._sign()
            if signature != self._signature:
                # Before reading, so that a change during it is found by the next call.
                self._signature = signature
                self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            log.error("the new %s cannot be used, the previous ones stay in force: %s", self._what, error)  # noqa: TRY400
        else:
            log.info("reloaded the %s", self._what)

    def _sign(self) -> _Signature:
        return tuple(_sign(path) for path in self._paths)


def warn_if_public(flag: str, path: Path) -> None:
    """Log a warning where others than the owner and the group may read a secret."""
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("%s %s: every user of this machine can read it; use chmod 640 or less", flag, path)


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
