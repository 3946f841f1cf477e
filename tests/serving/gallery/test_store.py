"""What holds for every store of speakers: a SQLite file and a PostgreSQL database."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.gallery.exemplar import Exemplar, KeptRecording, unit
from speakerlens.serving.gallery.store import SpeakerStore, open_store

SIZE = 64
BUNDLE, OTHER = "d" * 64, "e" * 64
NOW = "2026-01-01T00:00:00+00:00"
Reopen = Callable[[], SpeakerStore]


def exemplar(speaker: str = "anna", variant: str = "da", version: int = 1, seed: int = 0) -> Exemplar:
    embedding = unit(np.random.default_rng(seed).normal(size=SIZE))
    return Exemplar(speaker, variant, version, BUNDLE, 1, NOW, embedding)


def facts(exemplars: list[Exemplar]) -> list[tuple[object, ...]]:
    return [(e.speaker, e.variant, e.version, e.bundle, e.utterances, e.enrolled, e.quality, e.recording,
             *e.embedding) for e in exemplars]  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.process)])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Return a function that opens one store again and again, as another server does."""
    address = str(tmp_path / "speakers.db") if request.param == "sqlite" else request.getfixturevalue("database")
    opened: list[SpeakerStore] = []

    def open_again() -> SpeakerStore:
        opened.append(open_store(address))
        return opened[-1]

    yield open_again
    for each in opened:
        each.close()


@pytest.fixture
def store(reopen: Reopen) -> SpeakerStore:
    return reopen()


def test_exemplars_survive_as_they_were(store: SpeakerStore, reopen: Reopen) -> None:
    quality = Evidence(1.5, None, 8000.0, 0.25, -20.5)
    stored = [replace(exemplar(version=2**31 - 1, seed=n), quality=quality, utterances=n + 1) for n in range(3)]
    store.enroll(stored, replace=True)
    for each in (store, reopen()):
        assert facts(each.find("anna")) == facts(stored)
        assert each.find("unknown") == []


def test_replacing_removes_all_of_a_speaker(store: SpeakerStore) -> None:
    store.enroll(
        [exemplar("anna", "clean"), exemplar("anna", "da")], [KeptRecording("r", "anna", NOW, b"x")], replace=True
    )
    store.enroll([exemplar("bob")], replace=True)
    store.enroll([exemplar("anna", "da", 2, 7)], replace=True)
    assert facts(store.find("anna")) == facts([exemplar("anna", "da", 2, 7)])
    assert store.recordings("anna") == []
    assert facts(store.find("bob")) == facts([exemplar("bob")])


def test_adding_keeps_what_is_stored(store: SpeakerStore) -> None:
    store.enroll([exemplar(seed=1)], replace=True)
    store.enroll([exemplar(seed=2), exemplar(variant="clean", seed=3)], replace=False)
    found = [exemplar(variant="clean", seed=3), exemplar(seed=1), exemplar(seed=2)]
    assert facts(store.find("anna")) == facts(found)
    [clean, da] = store.page("", 9)
    assert (clean.exemplars, da.exemplars, da.size, da.recorded) == (1, 2, SIZE, False)


def test_removed_speaker_is_gone_with_the_recordings(store: SpeakerStore) -> None:
    store.enroll([exemplar()], [KeptRecording("r", "anna", NOW, b"audio")], replace=True)
    assert store.remove("anna")
    assert not store.remove("anna")
    assert (store.find("anna"), store.recordings("anna"), store.page("", 9)) == ([], [], [])


def test_pages_are_ordered_by_code_points(store: SpeakerStore) -> None:
    names = ["Bob", "Zoë", "anna", "anna b", "ärger", "𝔞"]
    for name in reversed(names):
        store.enroll([exemplar(name), exemplar(name, "clean")], replace=True)
    found, after = [], ""
    while page := store.page(after, 4):
        assert [each.variant for each in page] == ["clean", "da"] * (len(page) // 2)
        found += [each.speaker for each in page[::2]]
        after = page[-1].speaker
    assert found == sorted(names) == names


def test_failed_change_leaves_nothing(store: SpeakerStore) -> None:
    store.enroll([exemplar(seed=1)], replace=True)
    twice = replace(exemplar(seed=2), recording="r")
    with pytest.raises(Exception, match="nothing was changed"):
        store.enroll([twice, twice], replace=True)  # two exemplars of one recording
    assert facts(store.find("anna")) == facts([exemplar(seed=1)])
    store.enroll([exemplar(seed=3)], replace=True)
    assert facts(store.find("anna")) == facts([exemplar(seed=3)])


def test_bundle_is_read_speaker_by_speaker(store: SpeakerStore) -> None:
    for name in ("carl", "anna", "bob"):
        store.enroll([exemplar(name, seed=n) for n in range(3)], replace=True)
    store.enroll([replace(exemplar("bob"), bundle=OTHER)], replace=False)
    assert [each.speaker for each in store.bundle_exemplars(BUNDLE)] == ["anna"] * 3 + ["bob"] * 3 + ["carl"] * 3
    assert [each.speaker for each in store.bundle_exemplars(OTHER)] == ["bob"]


def test_recordings_are_kept_and_embedded_again_once(store: SpeakerStore, reopen: Reopen) -> None:
    kept = [KeptRecording(name, "anna", NOW, name.encode() * 1000) for name in ("b", "a")]
    first = [replace(exemplar(seed=n), recording=each.id) for n, each in enumerate(kept)]
    store.enroll(first, kept, replace=True)
    assert reopen().recordings("anna") == kept
    assert store.without([OTHER], "", 9) == [("anna", True)]
    new = [replace(each, bundle=OTHER, version=2) for each in first]
    gone = replace(new[0], recording="gone", speaker="bob")
    assert store.attach([*new, gone]) == 2
    assert store.attach(new) == 0
    assert [(each.version, each.recording) for each in store.find("anna")] == [(1, "b"), (1, "a"), (2, "b"), (2, "a")]
    assert store.find("bob") == []
    assert store.without([OTHER], "", 9) == []


def test_speakers_of_other_bundles_are_told(store: SpeakerStore) -> None:
    for name in ("anna", "bob", "carl"):
        store.enroll([exemplar(name)], replace=True)
    store.enroll([replace(exemplar("bob"), bundle=OTHER)], replace=False)
    assert store.without([OTHER], "", 9) == [("anna", False), ("carl", False)]
    assert store.without([OTHER], "anna", 9) == [("carl", False)]
    assert store.without([OTHER, BUNDLE], "", 9) == []


def test_old_exemplars_are_forgotten_with_their_recordings(store: SpeakerStore) -> None:
    old = "2020-01-01T00:00:00+00:00"
    store.enroll(
        [replace(exemplar(), enrolled=old, recording="r")], [KeptRecording("r", "anna", old, b"x")], replace=True
    )
    store.enroll([replace(exemplar("bob"), enrolled=old)], replace=True)
    store.enroll([exemplar("bob", seed=1)], replace=False)
    revision = store.revision()
    assert store.forget("2025-01-01T00:00:00+00:00") == 2
    assert store.changed_since(revision) == {"anna", "bob"}
    assert (store.find("anna"), store.recordings("anna")) == ([], [])
    assert facts(store.find("bob")) == facts([exemplar("bob", seed=1)])
    assert store.forget("2025-01-01T00:00:00+00:00") == 0


def test_changes_are_told_to_another_server(store: SpeakerStore, reopen: Reopen) -> None:
    """The gallery in memory asks for what changed; None means that it must read everything."""
    other = reopen()
    before = other.revision()
    assert other.changed_since(before) == set()
    store.enroll([exemplar("anna")], replace=True)
    store.enroll([exemplar("bob")], replace=True)
    after = other.revision()
    assert after > before
    assert other.changed_since(before) == {"anna", "bob"}
    assert other.changed_since(after) == set()
    store.enroll([exemplar("anna", seed=3)], replace=False)
    assert other.changed_since(after) == {"anna"}
    now = store.revision()
    store.remove("bob")
    assert store.changed_since(now) == {"bob"}
    assert other.changed_since(now) in ({"bob"}, None), "a file keeps no names of removed speakers"
    assert other.changed_since(other.revision() + 5) is None


def test_servers_that_write_at_once_leave_whole_speakers(reopen: Reopen) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: reopen(), range(4)))

        def write(number: int) -> None:
            for seed in (number, number + 4):
                pair = [exemplar("anna", seed=seed), exemplar("anna", "b", seed=seed)]
                stores[number].enroll(pair, replace=True)

        list(pool.map(write, range(4)))
    first, second = stores[0].find("anna")
    assert np.array_equal(first.embedding, second.embedding), "halves of two enrolments"
    assert stores[0].revision() == stores[3].revision() == 9
