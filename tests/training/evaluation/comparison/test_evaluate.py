"""`evaluate` through the command line, against a slow reference; and what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from speakerlens.training.checkpoint import Run, load_run, read_checkpoint, write_checkpoint
from speakerlens.training.cli import main
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.accuracy import true_ranks
from speakerlens.training.evaluation.comparison.evaluate import evaluate
from speakerlens.training.evaluation.comparison.inputs import find_corpus, load_runs
from speakerlens.training.evaluation.conditions import CLEAN, Condition, mixtures
from speakerlens.training.evaluation.maps.example import Calibrated, first_example
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT
from speakerlens.training.model.saliency import dominated_bins, fused, layercam
from tests.training.toy import make_corpus, write_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(evaluated: Path) -> Any:
    return json.loads((evaluated / "robustness.json").read_text(encoding="utf-8"))


def slow_scores(run: Run, conditions: list[Condition]) -> dict[tuple[str, float | None], list[list[float]]]:
    """Return scores and true label of each utterance in each condition, run alone and without padding."""
    tested: dict[tuple[str, float | None], list[list[float]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine threads would wait for each other at every operator
    for batch in mixtures(load_corpus(run.corpus), "test", run.speakers, conditions, 1):
        with torch.no_grad():
            logits, _ = run.network(batch.mixture.audio)
        key = (batch.condition.kind, batch.condition.snr_db)
        tested.setdefault(key, []).append([float(batch.labels), *logits[0].tolist()])
    torch.set_num_threads(threads)
    return tested


def test_writes_what_it_promises(evaluated: Path) -> None:
    names = {"robustness.json", "robustness.csv", "robustness.png", "saliency.png", "report.html"}
    names |= {"example-clean.flac", "example-corrupted.flac"}
    assert {path.name for path in evaluated.iterdir()} == names


def test_accuracies_are_those_of_single_utterances(found: Any, toy_runs: dict[str, Path]) -> None:
    conditions = [CLEAN, *(Condition(k, s) for k in found["kinds"] for s in (20.0, 0.0, -5.0))]
    for variant, folder in toy_runs.items():
        for (kind, snr), tested in slow_scores(load_run(folder), conditions).items():
            labels, scores = np.array(tested)[:, 0].astype(int), np.array(tested)[:, 1:]
            right = np.mean(scores.argmax(axis=1) == labels)
            row = next(
                s for s in found["scores"] if (s["variant"], s["interference"], s["snr_db"]) == (variant, kind, snr)
            )
            assert row["top1"] == pytest.approx(right)
            assert row["top5"] == 1.0  # there are only three speakers
            assert row["utterances"] == len(tested) == 3


def test_csv_agrees_with_json(evaluated: Path, found: Any) -> None:
    with (evaluated / "robustness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "interference", "snr_db", "top1", "top5", "utterances"]
    assert len(rows) == len(found["scores"]) == 2 * (1 + 4 * 6)
    for row, score in zip(rows, found["scores"], strict=True):
        assert row["variant"] == score["variant"]
        assert row["interference"] == score["interference"]
        assert (float(row["snr_db"]) if row["snr_db"] else None) == score["snr_db"]
        assert float(row["top1"]) == score["top1"]
        assert float(row["top5"]) == score["top5"]
        assert int(row["utterances"]) == score["utterances"]


def test_json_says_how_it_was_made(found: Any, toy_corpus: Path) -> None:
    about = found["about"]
    assert about["corpus"]["digest"] == load_corpus(toy_corpus).digest
    assert about["seed"] == 230516070
    assert [run["name"] for run in about["runs"]] == ["clean", "act-da"]
    assert about["versions"]["torch"] == torch.__version__
    assert set(found["left_out"]) == {"music", "babble"}


def test_deletion_index_is_the_mean_over_single_utterances(found: Any, toy_runs: dict[str, Path]) -> None:
    run = load_run(toy_runs["act-da"])
    indices = []
    for batch in mixtures(load_corpus(run.corpus), "test", run.speakers, [Condition("noise", 0.0)], 1):
        saliency = layercam(run.network, batch.mixture.audio, None, batch.labels)
        shown = fused(saliency)[0].double().numpy()
        dominated = dominated_bins(run.network.front_end, batch.mixture.speech, batch.mixture.interference)[0].numpy()
        indices.append(shown[dominated].sum() / shown.sum() / dominated.mean())
    row = next(
        r
        for r in found["deletion"]
        if (r["variant"], r["interference"], r["snr_db"], r["map"]) == ("act-da", "noise", 0.0, "fused")
    )
    assert row["index"] == pytest.approx(np.mean(indices), rel=1e-4)
    assert row["utterances"] == 3


def test_deletion_is_measured_for_every_kind_ratio_and_map(found: Any) -> None:
    keys = {(r["variant"], r["interference"], r["snr_db"], r["map"]) for r in found["deletion"]}
    maps = ("s1", "s2", "s3", "s4", "fused")
    kinds = ("noise", "speaker", "reverb", "reverb+noise")
    assert keys == {(v, k, s, m) for v in ("clean", "act-da") for k in kinds for s in (5, 0) for m in maps}


def test_network_with_equal_scores_identifies_nothing(toy_runs: dict[str, Path]) -> None:
    run = load_run(toy_runs["clean"])
    for parameter in run.network.head.parameters():
        parameter.data.zero_()
    ranks = true_ranks({"flat": run.network}, load_corpus(run.corpus), run.speakers, [CLEAN], lambda: None)
    assert (ranks == 3).all()


def test_nan_scores_are_refused_and_threads_restored(toy_runs: dict[str, Path]) -> None:
    run = load_run(toy_runs["clean"])
    run.network.encoder.seg_1.bias.data.fill_(torch.nan)
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="broken: its scores are NaN"):
        true_ranks({"broken": run.network}, load_corpus(run.corpus), run.speakers, [CLEAN], lambda: None)
    assert torch.get_num_threads() == threads


def test_the_example_is_the_first_test_utterance_with_its_axes(toy_runs: dict[str, Path]) -> None:
    run = load_run(toy_runs["act-da"])
    corpus = load_corpus(run.corpus)
    calibrated = {"act-da": Calibrated(temperature=2.0, threshold=2.0, utterances=6)}
    shown = first_example({"act-da": run.network}, calibrated, corpus, run.speakers, ["reverb", "speaker"])
    assert shown.utterance == corpus.utterances("test")[0].path.name
    assert shown.condition == Condition("speaker", 0.0)
    frames = (16000 - FRAME_LENGTH) // FRAME_SHIFT + 1
    answer = shown.answers["act-da"]
    assert shown.mixture_db.shape == shown.dominated.shape == answer.named.map.shape == (16, frames)
    assert (shown.times[0], shown.times[1]) == pytest.approx((0.0125, 0.0225))
    assert shown.centres_hz.tolist() == run.network.front_end.centres_hz()
    assert answer.correct == (answer.named.speaker == shown.speaker)
    with torch.no_grad():
        logits = run.network(torch.from_numpy(shown.mixture)[None])[0][0]
    assert answer.named.speaker == run.speakers[int(logits.argmax())]
    assert answer.named.probability == pytest.approx(float((logits / 2.0).softmax(dim=0).max()), abs=1e-5)
    assert not answer.known


def test_two_runs_of_a_variant_are_named_by_their_folders(toy_runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(toy_runs["clean"], tmp_path / "other")
    shutil.copytree(toy_runs["clean"], tmp_path / "deeper" / "other")
    assert list(load_runs([toy_runs["clean"], tmp_path / "other"], CPU)) == ["clean (clean)", "clean (other)"]
    with pytest.raises(UserError, match="rename one"):
        load_runs([tmp_path / "other", tmp_path / "deeper" / "other"], CPU)


@pytest.mark.parametrize("field", ["corpus_digest", "speakers"])
def test_runs_of_different_corpora_or_speakers_are_not_compared(
    field: str, toy_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_runs["act-da"], tmp_path / "run")
    checkpoint: Any = read_checkpoint(tmp_path / "run")
    checkpoint[field] = checkpoint[field][::-1]
    write_checkpoint(tmp_path / "run", checkpoint)
    out = tmp_path / "out"
    assert main(["evaluate", str(toy_runs["clean"]), str(tmp_path / "run"), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert str(tmp_path / "run") in message
    assert "cannot be compared" in message
    assert not out.exists()


def test_a_moved_corpus_is_found_by_name(toy_runs: dict[str, Path], toy_corpus: Path, tmp_path: Path) -> None:
    runs = load_runs([toy_runs["clean"]], CPU)
    shutil.copytree(toy_corpus, tmp_path / "moved")
    assert find_corpus(runs, tmp_path / "moved").root == (tmp_path / "moved").resolve()


def test_missing_or_other_corpus_is_refused(toy_runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(toy_runs["clean"], tmp_path / "run")
    checkpoint: Any = read_checkpoint(tmp_path / "run")
    checkpoint["corpus"] = str(tmp_path / "gone")
    write_checkpoint(tmp_path / "run", checkpoint)
    with pytest.raises(UserError, match=r"gone.*--corpus"):
        find_corpus(load_runs([tmp_path / "run"], CPU), None)
    make_corpus(tmp_path / "another", seed=1, interference=False)
    with pytest.raises(UserError, match="not the corpus that the runs were trained on"):
        find_corpus(load_runs([tmp_path / "run"], CPU), tmp_path / "another")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_results_cannot_go_where_a_file_is(
    toy_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("do not lose")
    assert main(["evaluate", str(toy_runs["clean"]), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert f"error: {tmp_path / 'out'}: cannot be made a folder (a file is in the way)" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "do not lose"


def test_shortest_allowed_utterances_work(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", seconds=SHORTEST_UTTERANCE)
    run, out = tmp_path / "run", tmp_path / "out"
    words = ["--config", write_config(tmp_path), "--variant", "act-da", "--corpus", tmp_path / "corpus", "--out", run]
    assert main(["fit", *map(str, words), "--updates", "1", "--device", "cpu"]) == 0
    assert main(["evaluate", str(run), "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "report.html").is_file()


def test_progress_reaches_its_end(toy_runs: dict[str, Path]) -> None:
    runs = load_runs([toy_runs["clean"]], CPU)
    with Progress(disable=True) as progress:
        evaluate(runs, find_corpus(runs, None), progress)
    assert len(progress.tasks) == 2
    assert all(task.completed == task.total for task in progress.tasks)
