"""An archive: a list of recordings scored into one table, which goes on where it was when it is started again.

Until the table OUT is complete, the folder OUT.work holds its description, the list of recordings, and a part for each
finished shard. A part is there as a whole or not at all. At the end the parts become the table, and the
description with what was counted stays as OUT.json.
"""

import fcntl
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speakerlens._version import __version__
from speakerlens.scoring.inputs import InputError, Shard, shards, write_inputs
from speakerlens.scoring.pool import ScoringError
from speakerlens.scoring.worker import Done, Plan, part_of
from speakerlens.scoring.writing import format_of, write_whole

RECORD_SUFFIX, WORK_SUFFIX = ".json", ".work"


@dataclass
class Totals:
    """What was counted: recordings and rows, recordings that failed by status, seconds of audio and of work."""

    recordings: int = 0
    rows: int = 0
    audio_s: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, done: Done) -> None:
        """Count a shard."""
        self.recordings += done.shard.count
        self.rows += done.rows
        self.audio_s += done.seconds
        self.failed += done.failed


class Archive:
    """An archive and its files.

    Args:
        source: of the recordings: a folder, a list, or `-`.
        out: the table.
        description: what else must be the same when it goes on: bundles and options.

    Attributes:
        total: recordings.
        totals: what is done.
        resumed: whether it was begun before.
    """

    def __init__(self, source: str, out: Path, description: dict[str, Any]) -> None:
        self.out = out
        self._source = source
        self._description = description
        self.total = 0
        self.totals = Totals()
        self.resumed = False
        self._format = format_of(out)
        self.work = out.with_name(out.name + WORK_SUFFIX)
        self._record = out.with_name(out.name + RECORD_SUFFIX)
        self._parts = self.work / "parts"
        self.inputs = self.work / "inputs"
        self._counts = self.work / "counts"

    def finished(self) -> Totals | None:
        """Return what was counted, if the table is there and was made of the same recordings in the same way.

        Raises:
            InputError: the table is there, and is another one.
        """
        if not self.out.exists():
            return None
        try:
            record = json.loads(self._record.read_text("utf-8"))
        except (OSError, ValueError):
            record = {}
        with tempfile.NamedTemporaryFile(dir=self.out.parent, prefix=f".{self.out.name}.") as listed:
            _, digest = write_inputs(self._source, Path(listed.name))
        if record.get("archive") != self._archive(digest):
            raise InputError(
                f"{self.out} is there already, of other recordings or options; name another file, or remove it"
            )
        totals = record["totals"]
        return Totals(**{**totals, "failed": Counter(totals["failed"])})

    @contextmanager
    def begun(self) -> Iterator[Iterator[Shard]]:
        """Begin the archive, or go on with it; enter with the shards that are left.

        Raises:
            InputError: there are no recordings, or it was begun in another way.
            ScoringError: another process works on it.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ScoringError(f"{self.out}: another process works on it") from None
            self._freeze()
            yield self._left()

    def _freeze(self) -> None:
        """Write the recordings, or check that they are those of before; a folder is not searched again."""
        described = self.work / "archive.json"
        if not described.exists():
            try:
                self.total, digest = write_inputs(self._source, self.inputs)
            except InputError:
                self.clear()
                raise
            content = json.dumps({"archive": self._archive(digest), "recordings": self.total}, indent=1)
            write_whole(described, lambda file: file.write_text(content, "utf-8"))
            return
        before = json.loads(described.read_text("utf-8"))
        digest = before["archive"]["inputs"]
        if not (self._source != "-" and Path(self._source).is_dir()):
            _, digest = write_inputs(self._source, self.work / "inputs.now")
        if changed := _changed(before["archive"], self._archive(digest)):
            raise InputError(
                f"{self.out} was begun with another value of {changed}; finish it as it was begun, name another file, "
                f"or remove {self.work}"
            )
        self.total, self.resumed = before["recordings"], True

    def _archive(self, inputs: str | None) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(self._description))
        return {"speakerlens": __version__, "source": self._source, "inputs": inputs, **plain}

    def _left(self) -> Iterator[Shard]:
        """Yield the shards without a part; count the others as they were counted."""
        there = {file.stem for file in self._parts.iterdir() if not file.name.startswith(".")}
        counted = dict(self._counted())
        for shard in shards(self.inputs):
            if shard.name in there and shard.name in counted:
                self.totals.add(Done(shard, *counted[shard.name]))
            else:
                yield shard

    def _counted(self) -> Iterator[tuple[str, tuple[int, float, Counter[str]]]]:
        if not self._counts.exists():
            return
        for line in self._counts.read_text("utf-8").splitlines():
            try:
                name, rows, seconds, failed = json.loads(line)
            except ValueError:  # the end of the file, where the process was killed
                continue
            yield name, (rows, seconds, Counter(failed))

    def record(self, done: Done) -> None:
        """Count a shard whose part is written."""
        line = json.dumps([done.shard.name, done.rows, done.seconds, done.failed])
        with self._counts.open("a", encoding="utf-8") as counts:
            counts.write(f"\n{line}\n")  # a line that was cut off by a kill does not spoil this one
        self.totals.add(done)

    def finish(self, plan: Plan) -> None:
        """Make the table of the parts, and remove what is not needed any more.

        Raises:
            OSError: it cannot be written. The parts stay.
        """
        parts = (part_of(plan, shard) for shard in shards(self.inputs))
        described = json.loads((self.work / "archive.json").read_text("utf-8"))
        totals = vars(self.totals)
        record = json.dumps({**described, "totals": totals, "ended": time.strftime("%FT%TZ", time.gmtime())}, indent=1)
        write_whole(self._record, lambda file: file.write_text(record + "\n", "utf-8"))
        write_whole(self.out, lambda file: self._format.join(parts, file))
        self.clear()

    def clear(self) -> None:
        """Remove the work folder of a finished archive."""
        shutil.rmtree(self.work, ignore_errors=True)

    def plan(self, bundle: Path, options: dict[str, Any]) -> Plan:
        """Return what a worker needs to know."""
        return Plan(self.inputs.resolve(), self._parts.resolve(), Path(self.out.name), bundle.resolve(), options)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the names of what differs."""
    return ", ".join(name for name in now if before.get(name) != now[name])
