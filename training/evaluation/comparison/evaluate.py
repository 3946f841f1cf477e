"""Compare trained variants under interference.

All variants are tested on the same mixtures of the corpus's test utterances: clean, and under each kind of interference
at each ratio. Writes robustness.json, robustness.csv, robustness.png, saliency.png and report.html.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from speakerlens.measures.scorer import Scorer
from speakerlens.training.compute import choose_device
from speakerlens.training.data.audio import write_audio
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.accuracy import Answers, accuracy_steps, answer_all, score_all, summarise
from speakerlens.training.evaluation.calibration import calibrate
from speakerlens.training.evaluation.comparison.figures import robustness_figure, saliency_figure
from speakerlens.training.evaluation.comparison.inputs import Runs, find_corpus, load_runs
from speakerlens.training.evaluation.comparison.report import write_report
from speakerlens.training.evaluation.comparison.results import (
    MEAN,
    Confidence,
    Deletion,
    Evaluation,
    SpeakerScores,
    average_deletion,
    write_csv,
    write_json,
)
from speakerlens.training.evaluation.conditions import LABELS, SEED, SNRS_DB, Condition, supplied_grid
from speakerlens.training.evaluation.maps.attributions import STAGES_AND_FUSED
from speakerlens.training.evaluation.maps.deletion import DELETION_SNRS_DB, TARGETS, deletion_by_target
from speakerlens.training.evaluation.maps.example import Calibrated, Example, first_example
from speakerlens.training.evaluation.maps.probes import Probes, choose_probes
from speakerlens.training.evaluation.metrics import expected_calibration_error, reliability
from speakerlens.training.evaluation.predictions import SplitPredictions, predict_split
from speakerlens.training.evaluation.scorer import fit_scorer
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.files import make_folder
from speakerlens.training.model.inference import for_inference
from speakerlens.training.options import add_device
from speakerlens.training.provenance import machine, moment, tested, versions
from speakerlens.training.run_log import read_log, training_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `evaluate`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder that `train` made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--corpus", type=Path, help="folder of the corpus, if it was moved after training")
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    device = choose_device(arguments.device)
    runs = load_runs(arguments.runs, device)
    corpus = find_corpus(runs, arguments.corpus)
    out: Path = arguments.out
    make_folder(out)
    console = Console()
    with _progress(console) as progress:
        evaluation, shown = evaluate(runs, corpus, progress)
    write_json(evaluation, out / "robustness.json")
    write_csv(evaluation, out / "robustness.csv")
    robustness_figure(evaluation, out / "robustness.png")
    saliency_figure(shown, out / "saliency.png")
    write_audio(out / "example-clean.flac", shown.speech)
    write_audio(out / "example-corrupted.flac", shown.mixture)
    write_report(evaluation, shown, out / "example-corrupted.flac", out / "example-clean.flac", out / "report.html")
    console.print(table(evaluation))
    for kind, reason in evaluation.left_out.items():
        console.print(f"left out: {LABELS[kind].lower()}: {reason}", highlight=False)
    console.print(
        f"written: {out / 'report.html'}, robustness.json, robustness.csv, robustness.png, saliency.png, and the "
        "example as example-clean.flac and example-corrupted.flac",
        soft_wrap=True,
    )
    return 0


def evaluate(runs: Runs, corpus: Corpus, progress: Progress) -> tuple[Evaluation, Example]:
    """Measure accuracy, calibration and deletion index of each run, and explain one example.

    Raises:
        UserError: the corpus has no interference, or a network's scores are not finite.
    """
    names, speakers = tuple(runs), next(iter(runs.values())).speakers
    networks = {name: for_inference(run.network) for name, run in runs.items()}
    conditions, left_out = supplied_grid(corpus, "test")
    kinds = tuple(dict.fromkeys(condition.kind for condition in conditions[1:]))
    if not kinds:
        raise UserError(f"{corpus.root}: has no interference to test with; prepare it with noise, music or others")
    task = progress.add_task("accuracy", total=accuracy_steps(networks, corpus, conditions))
    calibrated = calibrate_all(networks, corpus, speakers)
    temperatures = {name: of.temperature for name, of in calibrated.items()}
    answers = answer_all(networks, corpus, speakers, conditions, temperatures, lambda: progress.advance(task))
    summaries, differences = summarise(names, conditions, answers.ranks)
    probes = choose_probes(corpus, speakers)
    deletion, means = _deletion(networks, probes, kinds, progress)
    evaluation = Evaluation(
        about=_about(runs, corpus),
        variants=names,
        kinds=kinds,
        snrs_db=SNRS_DB,
        left_out=left_out,
        scores=score_all(names, conditions, answers.ranks),
        summaries=summaries,
        differences=differences,
        deletion_setup={
            "utterances": len(probes.clips),
            "chosen": "the first test utterances of each speaker in the manifest, equally many of each, at most 60",
            "target": "true: the true speaker; predicted: the one whom the variant names, as the server explains it",
            "dominated": "mel-filtered power of the interference above that of the speech",
        },
        deletion=deletion,
        deletion_means=means,
        speaker_scores=_by_speaker(names, speakers, answers),
        confidence={name: _confidence(calibrated[name], answers, row) for row, name in enumerate(names)},
    )
    return evaluation, first_example(networks, calibrated, corpus, speakers, kinds)


def calibrate_all(networks: Networks, corpus: Corpus, speakers: Sequence[str]) -> dict[str, Calibrated]:
    """Return each network's calibration, as the export writes it into the bundle; none without dev utterances."""
    found = dict.fromkeys(networks, Calibrated())
    if not corpus.utterances("dev"):
        return found

    scorers: dict[str, Scorer | None] = {}
    predicted: dict[str, list[SplitPredictions]] = {}

    def predict(name: str) -> None:
        predicted[name] = predict_split(networks[name], corpus, "dev", speakers, lambda: None)

    def fit(name: str) -> None:
        scorers[name] = fit_scorer(networks[name], corpus, speakers)

    def finish(name: str) -> None:
        made = calibrate(networks[name], corpus, speakers, scorer=scorers[name], predicted=predicted[name])
        used = None if made.score == "logit" else scorers[name]
        found[name] = Calibrated(made.temperature, made.threshold, made.utterances, used)

    device, _ = device_and_front_end(networks)
    # The longest steps first, so that no core is left with one at the end.
    steps = [partial(step, name) for step in (predict, fit) for name in networks]
    for_each(steps, lambda step: step(), device, lambda: None)
    for_each(networks, finish, device, lambda: None)
    return found


def _deletion(
    networks: Networks, probes: Probes, kinds: Sequence[str], progress: Progress
) -> tuple[tuple[Deletion, ...], tuple[Deletion, ...]]:
    """Return the deletion indices of every condition, and their means over the conditions."""
    task = progress.add_task("deletion index", total=None)
    probed = [Condition(kind, snr_db) for kind in kinds for snr_db in DELETION_SNRS_DB]
    found = deletion_by_target(
        networks, probes, probed, TARGETS, lambda done, total: progress.update(task, completed=done, total=total)
    )
    rows, means = [], []
    for target, indices in found.items():
        for name in STAGES_AND_FUSED:
            for variant in networks:
                of = [row for row in indices if row.network == variant]
                values = np.array([[row.indices[name], row.clean_indices[name]] for row in of])
                for row, (index, clean) in zip(of, values, strict=True):
                    condition = Condition(row.kind, row.snr_db)
                    rows.append(average_deletion(variant, condition, name, index, clean, target))
                # The mean over conditions of each utterance, in the conditions in which it has both.
                both = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
                known = np.isfinite(both[:, 0]).any(axis=0)
                averaged = np.full(both.shape[1:], np.nan)
                averaged[:, known] = np.nanmean(both[:, :, known], axis=0)
                mean = Condition(MEAN, None)
                means.append(average_deletion(variant, mean, name, averaged[0], averaged[1], target))
    return tuple(rows), tuple(means)


def _by_speaker(names: Sequence[str], speakers: Sequence[str], answers: Answers) -> SpeakerScores:
    """Count who was named for whom; the first condition is clean speech and is left out."""
    named = np.zeros((len(names), len(speakers), len(speakers)), dtype=np.int64)
    true = np.broadcast_to(answers.labels, answers.predicted[0, 1:].shape)
    for counts, predicted in zip(named, answers.predicted[:, 1:], strict=True):
        np.add.at(counts, (true, predicted), 1)
    return SpeakerScores(
        tuple(speakers),
        {name: tuple(map(tuple, counts.tolist())) for name, counts in zip(names, named, strict=True)},
    )


def _confidence(calibrated: Calibrated, answers: Answers, row: int) -> Confidence:
    correct = answers.predicted[row] == answers.labels
    bins = reliability(torch.from_numpy(answers.confidence[row].ravel()), torch.from_numpy(correct.ravel()))
    error = expected_calibration_error(bins)
    return Confidence(calibrated.temperature, calibrated.threshold, calibrated.utterances, bins, error)


def table(evaluation: Evaluation) -> Table:
    """Return the means as a table for the terminal."""
    shown = Table(title="Top-1 accuracy in percent: mean over all conditions with interference, and by kind")
    shown.add_column("variant")
    for heading in ("mean", "clean", *evaluation.kinds):
        shown.add_column(heading, justify="right")
    for summary in evaluation.summaries:
        shares = (summary.mean, summary.clean, *summary.kinds.values())
        shown.add_row(summary.variant, *(f"{100 * share:.1f}" for share in shares))
    return shown


def _about(runs: Runs, corpus: Corpus) -> dict[str, object]:
    device = next(next(iter(runs.values())).network.parameters()).device
    return {
        **moment(),
        "seed": SEED,
        "corpus": tested(corpus),
        "runs": [
            {
                "name": name,
                "variant": run.variant,
                "updates": run.step,
                "updates_wanted": run.updates,
                "seed": run.config.seed,
                "training_seconds": training_seconds(read_log(run.folder)),
                "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
                "code_revision": run.code_revision,
            }
            for name, run in runs.items()
        ],
        "machine": machine(device),
        "versions": versions(),
    }


class LineProgress(Progress):
    """Progress where there is no terminal, such as in a log: a line for every tenth of a task."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self._printed: dict[TaskID, int] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task by some steps."""
        super().advance(task_id, advance)
        self._print(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Update a task."""
        super().update(task_id, **fields)
        self._print(task_id)

    def _print(self, task_id: TaskID) -> None:
        task = self._tasks[task_id]
        if not task.total:
            return
        tenth = int(10 * task.completed / task.total)
        if tenth > self._printed.get(task_id, 0):
            self._printed[task_id] = tenth
            line = f"{task.description}: {task.completed:.0f} of {task.total:.0f}, {task.elapsed or 0:.0f} s"
            self.console.print(line, highlight=False)


def _progress(console: Console) -> Progress:
    if not console.is_terminal:
        return LineProgress(console)
    return Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
    )
