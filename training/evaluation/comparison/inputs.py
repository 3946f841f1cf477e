"""The runs of an evaluation, and the corpus that they were trained on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from speakerlens import palette
from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.errors import UserError

Runs = Mapping[str, Run]


def load_runs(folders: Sequence[Path], device: torch.device) -> dict[str, Run]:
    """Load runs, each under its variant's name (with its folder's, where a variant occurs twice), in one order.

    Raises:
        UserError: a run cannot be read, or two differ in corpus, speakers or front end, or have the same name.
    """
    loaded = [(folder, load_run(folder, device)) for folder in folders]
    for folder, run in loaded:
        if not run.speakers:
            raise UserError(f"{folder}: has no classifier whose accuracy could be measured; import it with --enrol")
    loaded.sort(key=lambda each: palette.rank(each[1].variant))
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
