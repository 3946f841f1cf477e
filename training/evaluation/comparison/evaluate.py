"""Compare trained variants under interference: `python -m training evaluate RUN RUN … --out DIR [--corpus DIR]`.

All variants are tested on the same mixtures of the corpus's test utterances: clean, and under each kind of interference
at each ratio. Writes robustness.json, robustness.csv, robustness.png, saliency.png and report.html.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.compute import choose_device
from speakerlens.training.data.audio import write_audio
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.accuracy import accuracy_steps, score_all, summarise, true_ranks
from speakerlens.training.evaluation.comparison.figures import robustness_figure, saliency_figure
from speakerlens.training.evaluation.comparison.report import write_report
from speakerlens.training.evaluation.comparison.results import Evaluation, average_deletion, write_csv, write_json
from speakerlens.training.evaluation.conditions import LABELS, SEED, SNRS_DB, Condition, supplied_grid
from speakerlens.training.evaluation.maps.attributions import STAGES_AND_FUSED
from speakerlens.training.evaluation.maps.deletion import DELETION_SNRS_DB, deletion_indices
from speakerlens.training.evaluation.maps.example import Example, first_example
from speakerlens.training.evaluation.maps.probes import choose_probes
from speakerlens.training.files import make_folder
from speakerlens.training.provenance import machine, moment, tested, versions

Runs = Mapping[str, Run]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command `evaluate`."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder that `fit` made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--corpus", type=Path, help="folder of the corpus, if it was moved after training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")
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
    write_report(evaluation, shown, out / "robustness.png", out / "saliency.png", out / "report.html")
    console.print(table(evaluation))
    for kind, reason in evaluation.left_out.items():
        console.print(f"left out: {LABELS[kind].lower()}: {reason}", highlight=False)
    console.print(
        f"written: {out / 'report.html'}, robustness.json, robustness.csv, robustness.png, saliency.png, and the "
        "example as example-clean.flac and example-corrupted.flac",
        soft_wrap=True,
    )
    return 0


def load_runs(folders: Sequence[Path], device: torch.device) -> dict[str, Run]:
    """Load runs, each under its variant's name (with its folder's, where a variant occurs twice).

    Raises:
        UserError: a run cannot be read, or two differ in corpus, speakers or front end, or have the same name.
    """
    loaded = [(folder, load_run(folder, device)) for folder in folders]
    first_folder, first = loaded[0]
    for folder, other in loaded[1:]:
        for what, ours, theirs in (
            ("corpora", first.corpus_digest[:12], other.corpus_digest[:12]),
            ("speakers", first.speakers, other.speakers),
            ("front ends", f"{first.config.network.mel_bins} mel bins", f"{other.config.network.mel_bins} mel bins"),
        ):
            if ours != theirs:
                both = f" ({ours} and {theirs})" if isinstance(ours, str) else ""
                raise UserError(
                    f"{first_folder} and {folder}: have different {what}{both}, so their accuracies cannot be "
                    "compared; give runs trained on one corpus with one front end"
                )
    count = Counter(run.variant for _, run in loaded)
    runs: dict[str, Run] = {}
    for folder, run in loaded:
        name = run.variant if count[run.variant] == 1 else f"{run.variant} ({folder.resolve().name})"
        if name in runs:
            raise UserError(
                f"{folder}: a second run of the same variant and folder name ({name}); rename one of the two"
            )
        runs[name] = run
    return runs


def find_corpus(runs: Runs, folder: Path | None) -> Corpus:
    """Load the corpus that the runs were trained on, from `folder` if it was moved.

    Raises:
        UserError: it is missing, has changed, or has no test utterances.
    """
    trained = next(iter(runs.values()))
    where = folder or trained.corpus
    if folder is None and not where.is_dir():
        raise UserError(f"{where}: the corpus of the runs is not there; if it was moved, give its folder with --corpus")
    corpus = load_corpus(where)
    if corpus.digest != trained.corpus_digest:
        raise UserError(
            f"{where}: is not the corpus that the runs were trained on (digest {corpus.digest[:12]}, not "
            f"{trained.corpus_digest[:12]}): its test split may contain their training utterances"
        )
    if not corpus.utterances("test"):
        raise UserError(f"{where}: has no test utterances; evaluation needs some of every speaker")
    return corpus


def evaluate(runs: Runs, corpus: Corpus, progress: Progress) -> tuple[Evaluation, Example]:
    """Measure accuracy and deletion index of each run, and explain one example.

    Raises:
        UserError: the corpus has no interference, or a network's scores are not finite.
    """
    names, speakers = tuple(runs), next(iter(runs.values())).speakers
    networks = {name: run.network for name, run in runs.items()}
    conditions, left_out = supplied_grid(corpus, "test")
    kinds = tuple(dict.fromkeys(condition.kind for condition in conditions[1:]))
    if not kinds:
        raise UserError(f"{corpus.root}: has no interference to test with; prepare it with noise, music or others")
    probed = [Condition(kind, snr_db) for kind in kinds for snr_db in DELETION_SNRS_DB]
    task = progress.add_task("accuracy", total=accuracy_steps(networks, corpus, conditions))
    ranks = true_ranks(networks, corpus, speakers, conditions, lambda: progress.advance(task))
    probes = choose_probes(corpus, speakers)
    maps_task = progress.add_task("deletion index", total=None)
    found = deletion_indices(
        networks, probes, probed, lambda done, total: progress.update(maps_task, completed=done, total=total)
    )
    summaries, differences = summarise(names, conditions, ranks)
    evaluation = Evaluation(
        about=_about(runs, corpus),
        variants=names,
        kinds=kinds,
        snrs_db=SNRS_DB,
        left_out=left_out,
        scores=score_all(names, conditions, ranks),
        summaries=summaries,
        differences=differences,
        deletion_setup={
            "utterances": len(probes.clips),
            "chosen": "the first test utterances of each speaker in the manifest, equally many of each, at most 60",
            "target": "the true speaker",
            "dominated": "mel-filtered power of the interference above that of the speech",
        },
        deletion=tuple(
            average_deletion(row.network, Condition(row.kind, row.snr_db), name, np.array(row.indices[name]))
            for row in found
            for name in STAGES_AND_FUSED
        ),
    )
    return evaluation, first_example(networks, corpus, speakers, kinds)


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
                "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
                "code_revision": run.code_revision,
            }
            for name, run in runs.items()
        ],
        "machine": machine(device),
        "versions": versions(),
    }


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
    )
