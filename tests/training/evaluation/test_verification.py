"""Thresholds of verification, against a count of all pairs by plain loops."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speakerlens.training.data.manifest import Clip, Corpus, Kind
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.predictions import SplitPredictions, choose_clips
from speakerlens.training.evaluation.verification import REFERENCES, Verification, calibrate_verification

WAYS = 3  # conditions per clip
KNOWN, OUT_OF_SET = ("ada", "bob", "cy"), ("xia", "yan", "zoe")


def corpus(known: dict[str, int], out_of_set: dict[str, int]) -> Corpus:
    """Return a corpus with the given number of dev clips of each speaker."""

    def clips(kind: Kind, counts: dict[str, int]) -> list[Clip]:
        return [
            Clip(Path(f"{kind}-{name}-{i}.flac"), kind, "dev", 0.0, 1.0, name)
            for name, n in counts.items()
            for i in range(n)
        ]

    return Corpus(Path("corpus"), tuple(clips("utterance", known) + clips("speech", out_of_set)), "0" * 64)


def embedding(clip: Clip, way: int) -> np.ndarray:
    """Return a sum of parts for person, clip and condition, of arbitrary norm."""
    parts = [(clip.speaker, 1.0), (clip.path.name, 0.8), (f"{clip.path.name} {way}", 0.5)]
    rngs = [(np.random.default_rng([ord(c) for c in str(name)]), weight) for name, weight in parts]
    return np.asarray(sum(weight * rng.normal(size=6) for rng, weight in rngs) * (1 + way), np.float32).astype(float)


def predict(clips: Sequence[Clip], names: Sequence[str]) -> SplitPredictions:
    """Return those embeddings as predictions, in another order."""
    rows = [(clip, way) for way in range(WAYS) for clip in reversed(clips)]
    return SplitPredictions(
        logits=torch.zeros(len(rows), 2),
        embeddings=torch.from_numpy(np.stack([embedding(*row) for row in rows])).float(),
        labels=torch.tensor([names.index(str(clip.speaker)) for clip, _ in rows]),
        clips=tuple(clip for clip, _ in rows),
        kinds=("clean",) * len(rows),
    )


def found(material: Corpus, false_acceptance: float = 0.1) -> Verification:
    known, out_of_set = choose_clips(material, "dev", KNOWN)
    groups = [predict(known, KNOWN)] + ([predict(out_of_set, OUT_OF_SET)] if out_of_set else [])
    return calibrate_verification(material, groups, 3, false_acceptance)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    known=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    out_of_set=st.one_of(st.just([]), st.lists(st.integers(1, 3), min_size=3, max_size=3)),
    rate=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_threshold_of_all_pairs_accepts_the_given_share(known: list[int], out_of_set: list[int], rate: float) -> None:
    material = corpus(dict(zip(KNOWN, known, strict=True)), dict(zip(OUT_OF_SET, out_of_set, strict=bool(out_of_set))))
    tested = [(clip, embedding(clip, way)) for clip in material.clips for way in range(WAYS)]
    same, different = [], []
    for (one, first), (other, second) in combinations(tested, 2):
        if one.speaker == other.speaker:
            same += [cosine(first, second)] * (one != other)
        elif not out_of_set or "speech" in (one.kind, other.kind):
            different.append(cosine(first, second))
    first_threshold = found(material, rate).thresholds[0]
    assert first_threshold.utterances == 1
    assert (first_threshold.same_pairs, first_threshold.different_pairs) == (len(same), len(different))
    let_in = sum(score > first_threshold.threshold + 1e-9 for score in different)  # sums differ in their last digits
    assert let_in <= rate * len(different) < let_in + 1 + 1e-9
    if same:
        missed = sum(score < first_threshold.threshold for score in same) / len(same)
        assert first_threshold.miss == pytest.approx(missed, abs=1e-6)
    else:
        assert first_threshold.miss is None


def test_references_of_two_utterances_against_loops() -> None:
    material = corpus({"ada": 4, "bob": 1, "cy": 1}, {"xia": 1, "yan": 1, "zoe": 2})
    second = found(material, 0.1).thresholds[1]
    of = {name: [clip for clip in material.clips if clip.speaker == name] for name in ("ada", "bob", "cy", "zoe")}

    def direction(clip: Clip, way: int) -> np.ndarray:
        vector = embedding(clip, way)
        return np.asarray(vector / np.linalg.norm(vector))

    same, different = [], []
    for pair in (of["ada"][:2], of["ada"][2:], of["zoe"]):
        for way in range(WAYS):
            reference = direction(pair[0], way) + direction(pair[1], (way + 1) % WAYS)
            for clip in material.clips:
                scores = [cosine(reference, embedding(clip, tested)) for tested in range(WAYS)]
                if clip.speaker == pair[0].speaker:
                    same += scores * (clip not in pair)
                elif "speech" in (clip.kind, pair[0].kind):
                    different += scores
    assert (second.utterances, second.same_pairs, second.different_pairs) == (2, len(same), len(different))
    ranked = sorted(different, reverse=True)
    allowed = math.floor(0.1 * len(ranked))
    assert ranked[allowed] < second.threshold <= ranked[allowed - 1]
    assert second.miss == pytest.approx(np.mean([score < second.threshold for score in same]), abs=1e-6)


def test_sizes_without_enough_utterances_are_left_out() -> None:
    sizes = [each.utterances for each in found(corpus({"ada": 5, "bob": 1, "cy": 2}, {})).thresholds]
    assert sizes == [size for size in REFERENCES if size <= 5]


def test_result_names_its_speakers() -> None:
    with_out_of_set = found(corpus({"ada": 2, "bob": 2}, dict.fromkeys(OUT_OF_SET, 1)))
    assert (with_out_of_set.strangers, with_out_of_set.persons) == ("held-out speakers", 5)
    without = found(corpus({"ada": 2, "bob": 2}, {}))
    assert (without.strangers, without.persons) == ("known speakers", 2)


def test_single_person_is_refused() -> None:
    with pytest.raises(UserError, match="one person only"):
        found(corpus({"ada": 5}, {}))
