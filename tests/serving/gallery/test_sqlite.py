"""The speaker store without a server: intact after any failure, and foreign files are refused."""

import asyncio
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from speakerlens.serving.errors import (
    FailedPreconditionError,
    ResourceExhaustedError,
    StartupError,
    UnavailableError,
)
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar, unit
from speakerlens.serving.gallery.sqlite import SqliteStore
from speakerlens.serving.gallery.sqlite_file import SCHEMA
from speakerlens.serving.gallery.store import SpeakerStore

SIZE = 64


def exemplar(speaker: str = "anna", variant: str = "da", version: int = 1, seed: int = 0) -> Exemplar:
    embedding = unit(np.random.default_rng(seed).normal(size=SIZE))
    return Exemplar(speaker, variant, version, "d" * 64, 3, "2026-01-01T00:00:00+00:00", embedding)


def facts(exemplars: list[Exemplar]) -> list[tuple[object, ...]]:
    return [(e.speaker, e.variant, e.version, e.bundle, e.utterances, e.enrolled, *e.embedding) for e in exemplars]


def everything(store: SpeakerStore) -> list[Exemplar]:
    return [each for name in dict.fromkeys(e.speaker for e in store.page("", 10**6)) for each in store.find(name)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "speakers.db"


def test_stored_speakers_survive_a_restart(path: Path) -> None:
    stored = [exemplar("anna", "clean"), exemplar("anna", "da", 2, 1), exemplar("anna", "da", 10, 2)]
    store = SqliteStore(path)
    store.enroll([stored[2], stored[0], stored[1]], replace=True)
    store.enroll([exemplar("Bob")], replace=True)
    store.close()
    again = SqliteStore(path)
    assert facts(again.find("anna")) == facts(stored)
    assert facts(everything(again)) == facts([exemplar("Bob"), *stored])
    assert again.find("unknown") == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["speakers.db"], "one file"


def test_changes_are_synced_and_removed_data_is_overwritten(path: Path) -> None:
    """Without a power failure, and with SQLite's usual build, nothing else shows these settings."""
    connection = SqliteStore(path)._file._connection
    names = ("synchronous", "secure_delete", "trusted_schema", "journal_mode")
    assert [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == [3, 1, 0, "delete"]


def test_file_carries_the_mark_of_its_kind(path: Path) -> None:
    """Files of other versions of the server have the same mark, where SQLite's format keeps it."""
    SqliteStore(path).close()
    assert path.read_bytes()[68:72] == b"SpkL"


def test_removal_that_failed_is_not_remembered(path: Path) -> None:
    """Another server's removal gets its revision, and must not be taken for it."""
    store, other = SqliteStore(path), SqliteStore(path)
    for name in ("anna", "bo"):
        store.enroll([exemplar(name)], replace=True)
    before = store.revision()
    store._file._connection.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT revision FROM state").fetchone()
        with pytest.raises(UnavailableError, match="nothing was changed"):
            store.remove("anna")
    other.remove("bo")
    assert store.changed_since(before) is None, "everything is to be read again"
    before = other.revision()
    assert not store.remove("nobody")
    assert other.changed_since(before) == set(), "nothing was removed"


def test_closed_store_answers_no_more(path: Path) -> None:
    store = SqliteStore(path)
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.find("anna")


def test_largest_numbers_of_the_contract_are_kept(path: Path) -> None:
    store = SqliteStore(path)
    stored = replace(exemplar(version=2**31 - 1), utterances=2**31 - 1)
    store.enroll([stored], replace=True)
    assert facts(store.find("anna")) == facts([stored])


def test_speaker_is_replaced_and_removed_as_a_whole(path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("anna", "clean"), exemplar("anna", "da")], replace=True)
    store.enroll([exemplar("anna", "da", 2, 7)], replace=True)
    assert facts(everything(store)) == facts([exemplar("anna", "da", 2, 7)])
    assert store.remove("anna")
    assert not store.remove("anna")
    assert store.page("", 99) == []


def test_speakers_come_in_pages_and_the_file_is_compact(path: Path) -> None:
    """Four times as much, where each lies on pages of its own."""
    store = SqliteStore(path)
    empty = path.stat().st_size
    large = unit(np.ones(256, np.float32))
    names = [f"{number:03}" for number in range(60)]
    store.enroll(
        [replace(exemplar(name, variant), embedding=large) for name in names for variant in ("clean", "da")],
        replace=True,
    )
    found, after = [], ""
    while page := store.page(after, 7):
        assert len(page) % 2 == 0
        found += [each.speaker for each in page[::2]]
        after = page[-1].speaker
    assert found == names
    assert path.stat().st_size - empty < 120 * 1400


def test_removed_speaker_is_gone_from_the_file(path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("a rare name")], replace=True)
    embedding = exemplar().embedding.tobytes()
    assert b"a rare name" in path.read_bytes()
    assert embedding in path.read_bytes()
    store.remove("a rare name")
    assert b"a rare name" not in path.read_bytes()
    assert embedding[:40] not in path.read_bytes()


def make(statements: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.executescript(statements)
        connection.close()

    return write


def of_version(version: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        SqliteStore(path).close()
        make(f"PRAGMA user_version = {version}")(path)

    return write


def damaged(path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar(f"speaker {index}") for index in range(200)], replace=True)
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:24576] = bytes(range(256)) * 64
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_text("Dear server, these are my speakers."), "not a database"),
        (make("CREATE TABLE shopping (item TEXT)"), "a database of another program"),
        (of_version(3), "schema version 3, this server reads 1 to 2"),
        (of_version(0), "schema version 0"),
        (lambda path: path.mkdir(), "unable to open"),
        (damaged, "damaged"),
    ],
    ids=["text", "another's", "newer", "older", "folder", "damaged"],
)
def test_foreign_file_is_refused_and_unchanged(path: Path, write: Callable[[Path], object], sentence: str) -> None:
    write(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StartupError, match=sentence) as caught:
        SqliteStore(path)
    assert f"--speakers {path}" in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    "blob",
    [b"", b"odd", b"\0" * (4 * SIZE - 1), "text", 7]
    + [np.array([1.0, *rest], "<f4").tobytes() for rest in ([np.nan], [0.0, np.inf])],
)  # fmt: skip
def test_damaged_embedding_is_empty(path: Path, blob: object) -> None:
    """The row stays visible, to be replaced or removed; nothing can be compared with it."""
    store = SqliteStore(path)
    store.enroll([exemplar("anna"), exemplar("anna", "other")], replace=True)
    store._file._connection.execute("UPDATE exemplars SET embedding = ? WHERE variant = 'da'", (blob,))
    assert [(each.variant, len(each.embedding)) for each in store.find("anna")] == [("da", 0), ("other", SIZE)]
    assert [(each.variant, each.size) for each in store.page("", 9)] == [("da", 0), ("other", SIZE)]


@pytest.mark.parametrize(
    ("column", "value"),
    [("version", "one"), ("version", 2**31), ("version", 0), ("utterances", b"3"), ("utterances", -1),
     ("bundle", b"\xff"), ("variant", b"da"), ("enrolled", b"now")],
)  # fmt: skip
def test_row_that_no_server_wrote_is_left_out(
    path: Path, caplog: pytest.LogCaptureFixture, column: str, value: object
) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("anna"), exemplar("anna", "other")], replace=True)
    written = "CAST(? AS TEXT)" if value == b"\xff" else "?"  # no UTF-8
    store._file._connection.execute(f"UPDATE exemplars SET {column} = {written} WHERE variant = 'da'", (value,))  # noqa: S608
    assert [each.variant for each in store.find("anna")] == ["other"]
    assert caplog.text.count("it is left out") == 1
    assert "anna" not in caplog.text


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="No such file"):
        SqliteStore(tmp_path / "none" / "speakers.db")


def another_store(folder: Path, *speakers: str) -> Path:
    folder.mkdir()
    other = SqliteStore(folder / "other.db")
    for speaker in speakers:
        other.enroll([exemplar(speaker, seed=5)], replace=True)
    other.close()
    return folder / "other.db"


@pytest.mark.parametrize("replace_with", [Path.replace, shutil.copyfile], ids=["renamed", "written over"])
def test_replaced_file_is_opened_again(
    path: Path, tmp_path: Path, replace_with: Callable[[Path, Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Both files have seen equally many changes, so SQLite's own counter does not tell them apart."""
    store = SqliteStore(path)
    store.enroll([exemplar("anna")], replace=True)
    assert facts(store.find("anna")) == facts([exemplar("anna")])
    replace_with(another_store(tmp_path / "restored", "bob"), path)
    assert facts(everything(store)) == facts([exemplar("bob", seed=5)])
    assert ("replaced while the server runs" in caplog.text) == (replace_with is Path.replace)
    store.enroll([exemplar("carl")], replace=True)
    assert [each.speaker for each in SqliteStore(path).page("", 99)] == ["bob", "carl"]


def test_change_after_a_replacement_goes_into_the_new_file(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    another_store(tmp_path / "restored", "bob").replace(path)
    assert store.remove("bob")
    store.enroll([exemplar("carl")], replace=True)
    assert [each.speaker for each in SqliteStore(path).page("", 99)] == ["carl"]


def test_file_replaced_during_a_change_is_said(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    other = another_store(tmp_path / "restored", "bob")
    with pytest.raises(UnavailableError, match="replaced during the change; repeat"), store._file.change():
        other.replace(path)
    store.enroll([exemplar("carl")], replace=True)
    assert [each.speaker for each in store.page("", 99)] == ["bob", "carl"]


def test_missing_file_is_said_and_not_made_again(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("anna")], replace=True)
    path.rename(tmp_path / "moved.db")
    with pytest.raises(UnavailableError, match="gone from its place; nothing was read"):
        store.find("anna")
    with pytest.raises(UnavailableError, match="gone from its place; nothing was changed"):
        store.enroll([exemplar("bob")], replace=True)
    assert not path.exists()
    (tmp_path / "moved.db").rename(path)
    assert facts(store.find("anna")) == facts([exemplar("anna")])


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE other (x); PRAGMA application_id = 7")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_foreign, "a database of another program"),
        (lambda path: path.write_bytes(b"no database" * 500), "file is not a database"),
        (lambda path: path.write_bytes(b""), "empty"),
    ],
    ids=["another program's", "no database", "empty"],
)
def test_file_that_is_no_store_any_more_is_said(path: Path, spoil: Callable[[Path], object], sentence: str) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("anna")], replace=True)
    backup = path.read_bytes()
    spoil(path)
    for call in (lambda: store.find("anna"), lambda: store.enroll([exemplar("bob")], replace=True)):
        with pytest.raises(UnavailableError, match=sentence):
            call()
    path.unlink()
    path.write_bytes(backup)
    assert facts(store.find("anna")) == facts([exemplar("anna")])


def test_full_disk_changes_nothing(path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar("anna", seed=1)], replace=True)
    store._file._connection.execute("PRAGMA max_page_count = 16")
    with pytest.raises(ResourceExhaustedError, match="full; nothing was changed"):
        store.enroll([exemplar("anna", f"v{index}", seed=2) for index in range(100)], replace=True)
    assert facts(everything(store)) == facts([exemplar("anna", seed=1)])
    store.enroll([exemplar("anna", seed=3)], replace=True)  # there is room for that
    store.close()
    assert facts(everything(SqliteStore(path))) == facts([exemplar("anna", seed=3)])


def test_failed_change_leaves_the_store_usable(path: Path) -> None:
    store = SqliteStore(path)
    store.enroll([exemplar(seed=1)], replace=True)
    with pytest.raises(UnavailableError, match="nothing was changed"):
        twice = replace(exemplar(seed=2), recording="r")
        store.enroll([twice, twice], replace=True)  # two exemplars of one recording
    assert facts(store.find("anna")) == facts([exemplar(seed=1)])
    store.enroll([exemplar(seed=3)], replace=True)
    assert facts(SqliteStore(path).find("anna")) == facts([exemplar(seed=3)])


def test_file_locked_by_another_process_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speakerlens.serving.gallery.sqlite_file.BUSY_SECONDS", 0.05)
    store = SqliteStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    enroll = partial(store.enroll, [exemplar()], replace=True)
    for ask in (enroll, lambda: store.remove("anna"), lambda: store.page("", 9)):
        with pytest.raises(UnavailableError, match=r"cannot be used now .*locked"):
            ask()
    other.execute("ROLLBACK")
    store.enroll([exemplar()], replace=True)


def test_several_servers_share_one_file(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: SqliteStore(path), range(4)))
        writes = [
            pool.submit(stores[i % 4].enroll, [exemplar("anna", seed=i), exemplar("anna", "b", seed=i)], replace=True)
            for i in range(4)
        ]
        for each in writes:
            each.result()
    first, second = stores[0].find("anna")
    assert np.array_equal(first.embedding, second.embedding), "halves of two enrolments"


def test_another_server_makes_the_file_at_the_same_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    class LateConnection(sqlite3.Connection):
        def executescript(self, statements: str, /) -> sqlite3.Cursor:
            other = connect(path)
            other.executescript(SCHEMA)
            other.close()
            return super().executescript(statements)

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=LateConnection))
    store = SqliteStore(path)
    store.enroll([exemplar()], replace=True)
    assert facts(store.find("anna")) == facts([exemplar()])


async def test_asynchronous_store_runs_and_closes(path: Path) -> None:
    store = AsyncSpeakerStore(str(path))
    store.check()
    await store.run(lambda file: file.enroll([exemplar()], replace=True))
    assert facts(await store.run(lambda file: file.find("anna"))) == facts([exemplar()])
    file = await store.run(lambda file: file)
    store.close()
    store._threads.shutdown()
    with pytest.raises(UnavailableError, match="closed"):
        file.find("anna")


async def test_functions_of_a_store_run_in_one_thread(path: Path) -> None:
    def where(_file: SpeakerStore) -> int:
        time.sleep(0.01)
        return threading.get_ident()

    store = AsyncSpeakerStore(str(path))
    threads = await asyncio.gather(*(store.run(where) for _ in range(3)))
    store.close()
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_server_without_a_store_refuses() -> None:
    store = AsyncSpeakerStore(None)
    with pytest.raises(FailedPreconditionError, match="start it with --speakers"):
        await store.run(lambda file: file.find("anna"))
    store.close()


WRITER = """
import sys
from pathlib import Path
from tests.serving.gallery.test_sqlite import exemplar
from speakerlens.serving.gallery.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
for round in range(10**9):
    store.enroll([exemplar("anna", variant, seed=round) for variant in ("a", "b", "c")], replace=True)
    sys.stdout.write(f"{round}\\n")
    sys.stdout.flush()
"""


def test_store_survives_a_kill_at_any_moment(path: Path) -> None:
    for wait in (0.0, 0.003, 0.011, 0.02, 0.05):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "0\n"
            time.sleep(wait)
            writer.kill()
            answered = [0, *map(int, writer.stdout.read().split())][-1]
        rows = SqliteStore(path).find("anna")
        assert [row.variant for row in rows] == ["a", "b", "c"]
        # The last one answered, or the next, which was being written.
        held = [r for r in (answered, answered + 1) if np.array_equal(exemplar(seed=r).embedding, rows[0].embedding)]
        assert len(held) == 1
        assert all(np.array_equal(row.embedding, rows[0].embedding) for row in rows)


SCHEMA_1 = """
CREATE TABLE enrolments (speaker TEXT NOT NULL, variant TEXT NOT NULL, version INTEGER NOT NULL, bundle TEXT NOT NULL,
    utterances INTEGER NOT NULL, embedding BLOB NOT NULL, enrolled TEXT NOT NULL,
    PRIMARY KEY (speaker, variant, version));
PRAGMA application_id = 1399876428;
PRAGMA user_version = 1;
"""


def write_schema_1(path: Path, mean: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA_1)
    rows = [("anna", "clean", 1, "d" * 64, 3, mean.tobytes(), "2026-01-01T00:00:00+00:00"),
            ("anna", "da", 2, "d" * 64, 1, b"odd", "2026-01-01T00:00:00+00:00")]  # fmt: skip
    connection.executemany("INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def test_file_of_schema_1_is_brought_to_2_in_place(path: Path) -> None:
    """A mean becomes one exemplar of length one, with its number of utterances; a damaged row stays visible."""
    mean = (0.5 * exemplar().embedding).astype(np.float32)
    write_schema_1(path, mean)
    for _ in range(2):
        first, second = SqliteStore(path).find("anna")
        assert (first.variant, first.utterances, first.quality, first.recording) == ("clean", 3, None, None)
        assert np.allclose(first.embedding, exemplar().embedding, atol=1e-7)
        assert (second.variant, second.version, len(second.embedding)) == ("da", 2, 0)


def test_restored_file_of_schema_1_is_brought_to_2(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    write_schema_1(tmp_path / "backup.db", exemplar().embedding)
    (tmp_path / "backup.db").replace(path)
    assert [each.variant for each in store.find("anna")] == ["clean", "da"]
    store.enroll([exemplar("bob")], replace=True)
    assert [each.speaker for each in SqliteStore(path).page("", 9)] == ["anna", "anna", "bob"]


def test_failure_while_changing_the_schema_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_schema_1(path, exemplar().embedding)
    before = path.read_bytes()
    monkeypatch.setattr("speakerlens.serving.gallery.sqlite_file.OLD_ROW", "INSERT INTO nothing VALUES (1)")
    with pytest.raises(StartupError, match="cannot be used"):
        SqliteStore(path)
    assert path.read_bytes() == before
