"""What is read from files, and read again when they change."""

import logging
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int] | None, ...]


class ReloadingFile(Generic[T]):
    """The value of some files; one that cannot be read again keeps the value before, and says so once.

    Looking costs a `stat` per file, so whoever needs the value simply asks. Any thread may.

    Args:
        what: for the log, such as `tokens`.
        paths: the files.
        read: makes the value of them; raises OSError or ValueError with a sentence for the operator.

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
        """What the files say now, or said last when they made sense."""
        with self._lock:
            signature = self._sign()
            if signature != self._signature:
                # Signed before it is read: what is written meanwhile differs at the next look.
                self._signature = signature
                self._renew()
            return self._value

    def _renew(self) -> None:
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            log.error("the new %s cannot be used, the old ones stay in force: %s", self._what, error)  # noqa: TRY400
        else:
            log.info("read the new %s", self._what)

    def _sign(self) -> Signature:
        return tuple(_sign(path) for path in self._paths)


def warn_if_public(flag: str, path: Path) -> None:
    """Says so where others than the owner and the group may read a secret."""
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("%s %s: everybody on this machine can read it; chmod 640 or less is right", flag, path)


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
