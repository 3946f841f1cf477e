"""The gallery in memory: scores against a loop over exemplars, changes against reading everything again."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.gallery.exemplar import Exemplar, unit
from speakerlens.serving.gallery.matrix import Gallery

SIZE = 8
GOOD = Evidence(2.0, 20.0, 8000.0, 0.0, -25.0)
NAMES = st.sampled_from(["anna", "bo", "zoë", "çelik", "\U0001f600", "李"])


def exemplar(speaker: str, seed: int, size: int = SIZE, quality: Evidence | None = GOOD) -> Exemplar:
    values = unit(np.random.default_rng(seed).normal(size=size))
    return Exemplar(speaker, "da", 1, "digest", 1, "2026-11-29T00:00:00+00:00", values, quality)


def ordered(exemplars: Sequence[Exemplar]) -> Iterator[Exemplar]:
    return iter(sorted(exemplars, key=lambda each: each.speaker))


def same(first: Gallery, second: Gallery) -> None:
    assert first.names == second.names
    for name in ("embeddings", "starts", "qualities"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


ENROLLED = st.lists(st.tuples(NAMES, st.integers(0, 99)), max_size=12)


@given(ENROLLED, st.sets(NAMES))
def test_a_speakers_score_is_its_best_exemplar(enrolled: list[tuple[str, int]], chosen: set[str]) -> None:
    exemplars = [exemplar(*each) for each in enrolled]
    gallery, query = Gallery.of(ordered(exemplars), SIZE), unit(np.ones(SIZE))
    found, missing = gallery.find(chosen)
    assert set(missing) == chosen - {each.speaker for each in exemplars}
    for speakers, names in ((None, gallery.names), (found, tuple(gallery.names[index] for index in found))):
        matches = gallery.compare(query, speakers)
        assert tuple(gallery.names[index] for index in matches.speakers) == names
        for name, index, cosine, count in zip(names, matches.speakers, matches.cosines, matches.exemplars, strict=True):
            own = [float(each.embedding @ query) for each in exemplars if each.speaker == name]
            assert (cosine, count) == (pytest.approx(max(own), abs=1e-6), len(own))
            best = gallery.best_exemplar(int(index), query)
            assert float(best @ query) == pytest.approx(max(own), abs=1e-6)


@given(ENROLLED, st.sets(NAMES), ENROLLED)
def test_changes_give_the_gallery_that_is_read_again(
    before: list[tuple[str, int]], changed: set[str], after: list[tuple[str, int]]
) -> None:
    """Added, replaced and removed speakers, in any order."""
    new = [exemplar(*each) for each in after if each[0] in changed]
    kept = [exemplar(*each) for each in before]
    updated = Gallery.of(ordered(kept), SIZE).updated(changed, new)
    same(updated, Gallery.of(ordered([each for each in kept if each.speaker not in changed] + new), SIZE))


def test_empty_gallery_matches_nothing() -> None:
    gallery = Gallery.of(iter(()), SIZE)
    assert len(gallery.compare(unit(np.ones(SIZE))).cosines) == 0
    assert gallery.find(["anna"])[1] == ["anna"]


def test_damaged_exemplars_are_left_out() -> None:
    gallery = Gallery.of(iter([exemplar("anna", 1), exemplar("anna", 2, size=0), exemplar("bo", 3, size=0)]), SIZE)
    assert (gallery.names, len(gallery.embeddings)) == (("anna",), 1)


def test_conditions_of_an_enrolment_are_kept() -> None:
    silent = Evidence(0.0, None, 0.0, 0.0, None)
    gallery = Gallery.of(
        iter([exemplar("anna", 1), exemplar("anna", 2, quality=None), exemplar("bo", 3, quality=silent)]), SIZE
    )
    assert gallery.conditions(0) == [GOOD]
    assert gallery.conditions(1) == [silent]
