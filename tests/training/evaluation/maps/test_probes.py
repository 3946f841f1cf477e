"""Choice of the probes, and their mixtures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, Condition
from speakerlens.training.evaluation.maps.probes import Counter, Probes, choose_probes, mixture_groups


def corpus_of(counts: dict[str, int]) -> Corpus:
    clips = [
        Clip(Path(f"{speaker}-{number}.wav"), "utterance", "test", 0.0, 1.0, speaker)
        for speaker, count in counts.items()
        for number in range(count)
    ]
    return Corpus(Path("/nowhere"), tuple(clips), "")


def test_probes_are_round_robin_over_speakers() -> None:
    corpus = corpus_of({"ann": 3, "ben": 1, "cat": 2})
    names = [clip.path.stem for clip in choose_probes(corpus, corpus.speakers).clips]
    assert names == ["ann-0", "ben-0", "cat-0", "ann-1", "cat-1", "ann-2"]
    assert [clip.path.stem for clip in choose_probes(corpus, corpus.speakers, 4).clips] == names[:4]


def test_a_split_without_utterances_is_refused() -> None:
    corpus = corpus_of({"ann": 1})
    with pytest.raises(UserError, match="no dev utterances to measure maps on"):
        choose_probes(corpus, corpus.speakers, split="dev")


def test_every_batch_comes_in_all_conditions(toy_probes: Probes) -> None:
    conditions = (CLEAN, Condition("noise", 0.0), Condition("noise", 5.0))
    doubled = replace(toy_probes, clips=2 * toy_probes.clips)
    total, groups = mixture_groups(doubled, conditions, torch.device("cpu"))
    seen = list(groups)
    assert len(seen) == total == 2  # six utterances in batches of four
    for group in seen:
        assert [batch.condition for batch in group] == list(conditions)
    assert sorted(int(i) for group in seen for i in group[0].indices) == list(range(6))


def test_progress_is_counted() -> None:
    calls: list[tuple[int, int]] = []
    counter = Counter(2, lambda done, total: calls.append((done, total)))
    counter()
    counter()
    assert calls == [(1, 2), (2, 2)]
