import re
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speakerlens.training.config import Config, InterferenceConfig, PerturbationConfig
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset
from speakerlens.training.data.batches import Batch, BatchSource, ReadAhead
from speakerlens.training.data.manifest import Clip, Corpus, write_corpus
from speakerlens.training.data.perturbation import round_trip
from speakerlens.training.distributed import World
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.dev import make_dev_set
from speakerlens.training.variants import VARIANTS
from tests.training.toy import SPEAKERS, make_corpus, noting

CPU = torch.device("cpu")


def source(corpus: Corpus, config: Config, variant: str) -> BatchSource:
    return BatchSource(corpus, config, VARIANTS[variant], CPU)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_depends_only_on_seed_and_step(corpus: Corpus, config: Config, variant: str) -> None:
    one, other = source(corpus, config, variant), source(corpus, config, variant)
    other.batch(0)
    other.batch(7)
    first, second = one.batch(4), other.batch(4)
    assert torch.equal(first.audio, second.audio)
    assert torch.equal(first.labels, second.labels)
    assert first.names == second.names
    assert not torch.equal(first.audio, one.batch(5).audio)
    assert not torch.equal(first.audio, source(corpus, replace(config, seed=4), variant).batch(4).audio)


def test_crops_differ_between_steps_and_match_the_files(corpus: Corpus, config: Config) -> None:
    clean = source(corpus, config, "clean")
    files = {clip.path.name: read_audio(clip.path) for clip in corpus.utterances("train")}
    seen = set()
    for step in range(20):
        batch = clean.batch(step)
        for audio, name, label in zip(batch.audio.numpy(), batch.names, batch.labels.tolist(), strict=True):
            file, start = re.fullmatch(r"(.+) at ([\d.]+) s", name).groups()  # type: ignore[union-attr]
            assert file.startswith(SPEAKERS[label])
            near = round(float(start) * SAMPLE_RATE)
            windows = np.lib.stride_tricks.sliding_window_view(files[file], len(audio))
            assert any(
                np.array_equal(without_offset(window), audio) for window in windows[max(0, near - 100) : near + 100]
            )
            seen.add(name)
    assert len(seen) > 100  # of 120 crops, hardly any twice


def test_speakers_are_balanced(corpus: Corpus, config: Config) -> None:
    for step in range(5):
        assert Counter(source(corpus, config, "da-2x").batch(step).labels.tolist()) == {0: 4, 1: 4, 2: 4}


def test_pairs_contain_each_crop_clean_and_corrupted(corpus: Corpus, config: Config) -> None:
    clean = source(corpus, config, "clean").batch(3)
    for variant in ("act-pair", "da-pair"):
        pairs = source(corpus, config, variant)
        batch = pairs.batch(3)
        assert len(batch.audio) == pairs.rows == 12
        assert torch.equal(batch.audio[:6], clean.audio)
        assert torch.equal(batch.labels, clean.labels.repeat(2))
        assert (batch.audio[6:] != clean.audio).any(dim=1).all()
        assert len(batch.originals) == 0


def test_replaced_crops_come_with_their_originals(corpus: Corpus, config: Config) -> None:
    larger = replace(config, data=replace(config.data, batch_size=8))
    aligned = source(corpus, larger, "act-da").batch(3)
    alone = source(corpus, replace(config, data=replace(config.data, batch_size=14)), "clean").batch(3)
    assert len(aligned.audio) == 14  # 1.75 x 8
    assert torch.equal(aligned.originals, alone.audio[:7])
    assert (aligned.audio[:7] != aligned.originals).any(dim=1).all()
    assert torch.equal(aligned.audio[7:], alone.audio[7:])


@pytest.mark.parametrize(("alone", "quiet"), [(1.0, 12), (0.5, 6), (0.0, 0)])
def test_share_of_the_copies_passes_its_channel_alone(corpus: Corpus, config: Config, alone: float, quiet: int) -> None:
    channel = PerturbationConfig(codec=1.0, codecs=("mu-law",), alone=alone)
    found = 0
    for step in range(2):
        batch = source(corpus, replace(config, perturbation=channel), "act-pair").batch(step)
        for original, copy, name in zip(batch.audio[:6], batch.audio[6:], batch.names[6:], strict=True):
            same = np.array_equal(copy.numpy(), round_trip(original.numpy(), "mu-law"))
            assert same == bool(re.fullmatch(r".+ s, through mu-law", name)), "the name lists no interference"
            found += same
    assert abs(found - quiet) <= (3 if 0 < alone < 1 else 0)


@pytest.mark.parametrize(
    ("variant", "share", "copies"), [("da", 0.5, 3), ("da-2x", 0.25, 3), ("da", 0, 0), ("da", 1, 6)]
)
def test_configured_share_of_the_crops_is_corrupted(
    corpus: Corpus, config: Config, variant: str, share: float, copies: int
) -> None:
    mixed = replace(config, interference=replace(config.interference, share=share))
    batch = source(corpus, mixed, variant).batch(2)
    alone = source(corpus, replace(config, data=replace(config.data, batch_size=len(batch.audio))), "clean").batch(2)
    changed = (batch.audio != alone.audio).any(dim=1)
    assert int(changed.sum()) == copies
    assert torch.equal(batch.labels, alone.labels)
    assert [" dB" in name for name in batch.names] == changed.tolist()


@pytest.mark.parametrize("variant", ["clean", "act-da"])
def test_cached_and_seeking_reads_give_the_same_batches(
    corpus: Corpus, config: Config, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr("speakerlens.training.data.crops.read_audio", noting(reads))
    batches, counts = [], []
    for megabytes in (512.0, 0.0):
        reads.clear()
        other = source(corpus, replace(config, data=replace(config.data, cache_megabytes=megabytes)), variant)
        batches.append([other.batch(step) for step in range(5)])
        counts.append(len(reads))
    assert all(torch.equal(held.audio, sought.audio) for held, sought in zip(*batches, strict=True))
    assert counts == [9, 5 * round(6 * VARIANTS[variant].crops)]  # every clip once, or every crop


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_processes_make_up_the_whole_batch(corpus: Corpus, config: Config, variant: str, size: int) -> None:
    config = replace(config, data=replace(config.data, batch_size=24))  # act-da: 42 rows
    whole = source(corpus, config, variant).batch(3)
    sources = [BatchSource(corpus, config, VARIANTS[variant], CPU, World(rank, size)) for rank in range(size)]
    halves = 2 if VARIANTS[variant].copies == "pair" else 1
    for rank, other in enumerate(sources):
        share = other.batch(3)
        rows = [row for part in np.split(np.arange(len(whole.audio)), halves) for row in part[rank::size]]
        assert len(rows) * size == other.rows == len(whole.audio)
        torch.testing.assert_close(share.audio, whole.audio[rows], rtol=0, atol=1e-6)
        assert torch.equal(share.labels, whole.labels[rows])
        assert share.names == tuple(whole.names[row] for row in rows)
        torch.testing.assert_close(share.originals, whole.originals[rank::size], rtol=0, atol=0)


def test_process_reads_only_its_share(corpus: Corpus, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    monkeypatch.setattr("speakerlens.training.data.crops.read_audio", noting(reads))
    sought = replace(config, data=replace(config.data, cache_megabytes=0))
    BatchSource(corpus, sought, VARIANTS["clean"], CPU, World(1, 3)).batch(0)
    assert len(reads) == 2


def test_indivisible_batch_is_refused(corpus: Corpus, config: Config) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size 6 makes 10 crops, which .* equally among 4 processes"):
        BatchSource(corpus, config, VARIANTS["act-da"], CPU, World(0, 4))


@pytest.mark.parametrize(("share", "size"), [(0.0, 1), (0.1, 2)])
def test_alignment_with_fewer_copies_than_processes_is_refused(
    corpus: Corpus, config: Config, share: float, size: int
) -> None:
    config = replace(config, data=replace(config.data, batch_size=8))
    few = replace(config, interference=replace(config.interference, share=share))
    with pytest.raises(UserError, match=rf"share {share:g} makes {round(14 * share)} copies of 14 crops; this variant"):
        BatchSource(corpus, few, VARIANTS["act-da"], CPU, World(0, size))
    assert source(corpus, few, "da-2x").rows == 16  # which aligns nothing


def test_corpus_without_configured_interference_is_refused(tmp_path: Path, config: Config) -> None:
    bare = make_corpus(tmp_path / "corpus", interference=False)
    noise_only = replace(config, interference=InterferenceConfig(snr_db={"noise": (0.0, 5.0)}))
    with pytest.raises(UserError, match=r"no training interference of the configured kinds \(noise\)"):
        source(bare, noise_only, "da")
    assert source(bare, noise_only, "clean").kinds == ()
    assert source(bare, config, "da").kinds == ("speaker",)  # what it can supply of what is configured
    assert source(bare, config, "da").missing == ("noise", "music", "babble", "reverb")
    combined = replace(config, interference=InterferenceConfig(combine=0.5))
    with pytest.raises(UserError, match=r"combine needs two kinds of interference.* only speaker"):
        source(bare, combined, "da")


def test_name_of_a_copy_has_both_kinds(corpus: Corpus, config: Config) -> None:
    combined = replace(config, interference=InterferenceConfig(combine=1.0))
    names = source(corpus, combined, "act-pair").batch(0).names[6:]
    for name in names:
        kinds = re.findall(r" \+ (\w+) at -?[\d.]+ dB", name)
        assert len(set(kinds)) == 2


def test_speaker_without_training_data_is_named(corpus: Corpus, config: Config, tmp_path: Path) -> None:
    def keep(clip: Clip) -> bool:
        return clip.speaker != "bob" or clip.split == "test"

    other = write_corpus(tmp_path, [clip for clip in corpus.clips if keep(clip)])
    with pytest.raises(UserError, match="no train utterance of bob"):
        source(other, config, "clean")


def test_dev_set_does_not_depend_on_the_seed(corpus: Corpus, config: Config) -> None:
    one, other = make_dev_set(corpus, config), make_dev_set(corpus, replace(config, seed=99))
    assert one is not None
    assert other is not None
    assert one.corrupted is not None
    assert other.corrupted is not None
    assert torch.equal(one.clean, other.clean)
    assert torch.equal(one.corrupted, other.corrupted)
    assert (one.corrupted != one.clean).any(dim=1).all()
    assert sorted(one.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def number(step: int) -> Batch:
    return Batch(torch.zeros(1), torch.tensor([step]), torch.zeros(0), ())


@pytest.mark.parametrize("threads", [1, 3])
def test_read_ahead_keeps_the_order(threads: int) -> None:
    def slow_if_even(step: int) -> Batch:
        time.sleep(0.01 if step % 2 == 0 else 0)
        return number(step)

    with ReadAhead(slow_if_even, 5, 15, ahead=4, threads=threads) as batches:
        assert [batches.next().labels.item() for _ in range(10)] == list(range(5, 15))


def test_read_ahead_overlaps_and_is_bounded() -> None:
    made: list[int] = []
    third = threading.Event()

    def make(step: int) -> Batch:
        made.append(step)
        if step == 3:
            third.set()
        return number(step)

    with ReadAhead(make, 0, 100, ahead=3, threads=1) as batches:
        batches.next()
        assert third.wait(5)  # made before `next` is called
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]


def test_read_ahead_raises_an_error_at_its_step() -> None:
    def make(step: int) -> Batch:
        if step == 2:
            raise UserError("broken file")
        return number(step)

    with ReadAhead(make, 0, 9, ahead=4, threads=2) as batches:
        assert [batches.next().labels.item() for _ in range(2)] == [0, 1]
        with pytest.raises(UserError, match="broken file"):
            batches.next()
