"""Galleries of loaded bundles follow a real store: own changes at once, those of others after half a second."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speakerlens.serving.gallery import loaded
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar, unit
from speakerlens.serving.gallery.loaded import Galleries
from speakerlens.serving.gallery.store import SpeakerStore, open_store

SIZE = 8


@dataclass
class OneBundle:
    """What a gallery needs to know of a bundle."""

    name: str = "da/1"
    digest: str = "digest"
    embedding_size: int = SIZE


def enrolled(store: SpeakerStore, speaker: str, seed: int, bundle: str = "digest", replace: bool = True) -> None:
    values = unit(np.random.default_rng(seed).normal(size=SIZE))
    exemplar = Exemplar(speaker, "da", 1, bundle, 1, "2026-11-29T00:00:00+00:00", values)
    store.enroll([exemplar], replace=replace)


async def test_gallery_follows_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loaded, "time", SimpleNamespace(monotonic=lambda: now[0]))
    path, bundle = tmp_path / "speakers.db", OneBundle()
    mine, other = AsyncSpeakerStore(str(path)), open_store(str(path))
    galleries = Galleries(mine, lambda: ["digest"])

    async def names() -> tuple[str, ...]:
        return (await galleries.of(bundle)).names  # type: ignore[arg-type]

    assert await names() == ()
    await mine.run(lambda store: enrolled(store, "anna", 1))
    galleries.expire()
    assert await names() == ("anna",)
    enrolled(other, "bo", 2)
    enrolled(other, "zoë", 3, bundle="another")
    assert await names() == ("anna",)
    now[0] += loaded.LOOK_SECONDS
    assert await names() == ("anna", "bo")
    enrolled(other, "bo", 4, replace=False)
    other.remove("anna")
    now[0] += loaded.LOOK_SECONDS
    gallery = await galleries.of(bundle)  # type: ignore[arg-type]
    assert (gallery.names, len(gallery.embeddings)) == (("bo",), 2)
    assert await galleries.of(bundle) is gallery  # type: ignore[arg-type]
    mine.close()
    other.close()


async def test_change_during_a_read_is_seen_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database has several connections, so that an enrolment may be finished while a gallery is read."""
    store, bundle = AsyncSpeakerStore(str(tmp_path / "speakers.db")), OneBundle()
    galleries = Galleries(store, lambda: ["digest"])
    read = loaded._refreshed

    def refreshed(opened: SpeakerStore, *others: Any) -> Any:
        found = read(opened, *others)
        enrolled(opened, "anna", 1)
        galleries.expire()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loaded, "_refreshed", refreshed)
        assert (await galleries.of(bundle)).names == ()  # type: ignore[arg-type]
    assert (await galleries.of(bundle)).names == ("anna",)  # type: ignore[arg-type]
    store.close()


async def test_gallery_of_an_unloaded_bundle_is_dropped(tmp_path: Path) -> None:
    store = AsyncSpeakerStore(str(tmp_path / "speakers.db"))
    digests = ["digest", "second"]
    galleries = Galleries(store, lambda: digests)
    await galleries.of(OneBundle())  # type: ignore[arg-type]
    del digests[0]
    await galleries.of(OneBundle(digest="second"))  # type: ignore[arg-type]
    assert set(galleries._galleries) == {"second"}
    store.close()
