"""Embeddings, comparisons and enrolment by the Python clients, against a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from speakerlens import (
    AsyncSpeakerClient,
    Explain,
    GalleryImport,
    GalleryMigration,
    NotFoundError,
    NotPossibleError,
    SpeakerClient,
)
from tests.serving import toy
from tests.serving.harness import voice

from .conftest import TOY_VARIANTS

RATE = 16_000


@pytest.fixture(scope="module")
def client(toy_address: str) -> Iterator[SpeakerClient]:
    with SpeakerClient(toy_address) as client:
        yield client


def test_embeddings_and_the_cosine_of_two(client: SpeakerClient) -> None:
    first, second = voice(1.0), voice(1.2, seed=1)
    one, other = (client.embed(audio, rate=RATE)["da@1"] for audio in (first, second))
    np.testing.assert_allclose(one, toy.expected(toy.weights(1), first)["embedding"], rtol=1e-4, atol=1e-6)
    explain = Explain(stages=("s1",), resolution="native")
    result = client.verify(first, second, rate=RATE, variant="da", explain=explain)
    assert result.score == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)
    assert (result.threshold, result.same) == (0.8, result.score >= 0.8)
    assert result.explanation is not None
    assert result.other_explanation is not None
    wanted = toy.compared(toy.weights(1), second, one)["saliency_s1"]
    np.testing.assert_allclose(result.other_explanation.maps["s1"].values, wanted, atol=1e-4 * wanted.max())


def test_speakers_are_enrolled_listed_verified_and_forgotten(client: SpeakerClient) -> None:
    utterances = [voice(1.0), voice(0.8, seed=1)]
    enrolled = client.enroll("anna", utterances, rate=RATE, variants="da")
    assert [(m.variant, m.utterances, m.usable) for m in enrolled.models] == [("da", 2, True)]
    assert client.speakers() == (enrolled,)
    assert client.verify(utterances[0], speaker="anna", rate=RATE, variant="da@1").explanation is None
    with pytest.raises(NotPossibleError, match="enrol the speaker again"):
        client.verify(utterances[0], speaker="anna", rate=RATE, variant="clean")
    client.forget("anna")
    assert client.speakers() == ()
    with pytest.raises(NotFoundError, match="no enrolled speaker 'anna'"):
        client.forget("anna")


def test_verify_needs_exactly_one_comparison(client: SpeakerClient) -> None:
    for other, speaker in ((None, None), (voice(1.0), "anna")):
        with pytest.raises(ValueError, match="compare with"):
            client.verify(voice(1.0), other, speaker=speaker, rate=RATE)


def test_async_client_gives_the_same(toy_address: str) -> None:
    async def run() -> None:
        async with AsyncSpeakerClient(toy_address) as asynchronous:
            audio = voice(1.0)
            assert (await asynchronous.embed(audio, rate=RATE)).by_model.keys() == {
                f"{variant}@1" for variant in TOY_VARIANTS
            }
            await asynchronous.enroll("bob", [audio], rate=RATE)
            assert [each.speaker for each in await asynchronous.speakers()] == ["bob"]
            assert (await asynchronous.verify(audio, speaker="bob", rate=RATE, variant="da")).same
            parts = [part async for part in asynchronous.export_gallery()]
            assert await asynchronous.import_gallery(_pieces(parts)) == GalleryImport(1, len(TOY_VARIANTS))
            assert await asynchronous.migrate_gallery() == GalleryMigration(0, ())
            await asynchronous.forget("bob")

    asyncio.run(run())


async def _pieces(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
