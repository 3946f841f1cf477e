"""Search while the store changes, with a stand-in for the network."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar
from speakerlens.serving.gallery.loaded import Galleries
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.pipeline import search
from speakerlens.serving.pipeline.comparing import Comparer, Utterance
from speakerlens.serving.pipeline.decision import Decision
from speakerlens.serving.pipeline.decode import EncodedAudio
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.search import Searcher, SearchOptions

BUNDLE = SimpleNamespace(name="da/1", variant="da", version=1, digest="digest", embedding_size=2, search=None)
SOUND = Evidence(2.0, 20.0, 8000.0, 0.0, -26.0)


async def _at_once(function: Any) -> Any:
    return function()


@pytest.mark.parametrize(("names", "left"), [((), ["bo"]), (("anna",), [])])
async def test_speaker_removed_during_a_search_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], left: list[str]
) -> None:
    store = AsyncSpeakerStore(str(tmp_path / "speakers.db"))
    galleries = Galleries(store, lambda: ["digest"])
    for name, values in (("anna", [1.0, 0.0]), ("bo", [0.0, 1.0])):
        exemplar = Exemplar(name, "da", 1, "digest", 1, "2026-11-29T00:00:00+00:00", np.array(values, np.float32))
        await store.run(lambda opened, each=exemplar: opened.enroll([each], replace=True))  # type: ignore[misc]

    async def embed(*_: object) -> Utterance:
        await store.run(lambda opened: opened.remove("anna"))
        galleries.expire()
        return Utterance(np.array([1.0, 0.0]), AudioInfo(2.0, 16_000, 1, speech=True, evidence=SOUND))

    monkeypatch.setattr(Comparer, "embed", embed)
    monkeypatch.setattr(search, "check_explained", lambda *_: None)
    monkeypatch.setattr(search, "extent_of", lambda _: None)
    pipeline: Any = SimpleNamespace(admit=lambda *_, **__: nullcontext(), run_in_thread=_at_once)
    searcher = Searcher(pipeline, galleries, Metrics())
    options = SearchOptions(speakers=names)
    model: Any = SimpleNamespace(bundle=BUNDLE)
    answer = (await searcher.search(options, EncodedAudio(b""), model)).answer
    assert [each.speaker for each in answer.candidates] == left
    assert answer.decision is (Decision.UNRELIABLE if left else Decision.UNKNOWN)
    store.close()
