"""Known or not: shares of known speakers, out-of-set speakers and noises that a run's calibration calls known.

    python -m benchmarks.known RUN [RUN ...]

Calibrates each run as the export does, on the dev split of its corpus, and counts on the test split, whose out-of-set
speakers and noises are others. The corpus needs out-of-set speakers in dev and in test (`speakerlens prepare folder`
holds them out).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from speakerlens.training.checkpoint import Run, load_run
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.calibration import Scored, best_scores, calibrate
from speakerlens.training.evaluation.conditions import CLEAN
from speakerlens.training.evaluation.intervals import wilson
from speakerlens.training.evaluation.noise import predict_noise
from speakerlens.training.evaluation.predictions import choose_clips, predict
from speakerlens.training.evaluation.scorer import fit_scorer


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {str(folder.name): measure(load_run(folder)) for folder in arguments.runs}
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(run: Run) -> dict[str, dict[str, float]]:
    """Print and return for each group of recordings the share that is called known, in percent, with its interval.

    Raises:
        UserError: the test split has no out-of-set speakers.
    """
    corpus = load_corpus(run.corpus)
    scorer = fit_scorer(run.network, corpus, run.speakers)
    made = calibrate(run.network, corpus, run.speakers, scorer=scorer)
    of: Scored = lambda logits, _: logits.double() / run.network.head.scale  # noqa: E731
    if scorer is not None and made.score != "logit":
        chosen = scorer
        of = lambda logits, embeddings: logits.double() + torch.from_numpy(chosen.scores(embeddings.numpy()))  # noqa: E731
    clips, out_of_set = choose_clips(corpus, "test", run.speakers)
    if not out_of_set:
        raise UserError(f"{corpus.root}: no out-of-set speakers in its test split; `prepare folder --outsiders N`")
    known = predict(run.network, corpus, "test", clips, run.speakers, lambda: None)
    names = sorted({str(clip.speaker) for clip in out_of_set})
    others = predict(run.network, corpus, "test", out_of_set, names, lambda: None)
    right = known.logits.argmax(dim=1) == known.labels
    accepted = best_scores(of, known.logits, known.embeddings) >= made.threshold
    falsely = best_scores(of, others.logits, others.embeddings) >= made.threshold
    noise = best_scores(of, *predict_noise(run.network, corpus, "test")) >= made.threshold
    print(f"{run.variant}: threshold on {made.score}, nominal {100 * made.false_acceptance:g} %")
    figures = {
        "top-1, clean": right[_clean(known.kinds)],
        "known, clean": accepted[_clean(known.kinds)],
        "known and right, clean": (accepted & right)[_clean(known.kinds)],
        "known and right, all conditions": accepted & right,
        "out-of-set known, clean": falsely[_clean(others.kinds)],
        "out-of-set known, all conditions": falsely,
        "noise alone known": noise,
    }
    return {name: _share(name, each) for name, each in figures.items()}


def _clean(kinds: Sequence[str]) -> Tensor:
    return torch.tensor([kind == CLEAN.kind for kind in kinds])


def _share(name: str, hits: Tensor) -> dict[str, float]:
    count, total = int(hits.sum()), len(hits)
    low, high = wilson(count, total)
    print(f"  {name:34} {100 * count / total:5.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {total}", flush=True)
    return {"percent": 100 * count / total, "low": 100 * low, "high": 100 * high, "of": total}


if __name__ == "__main__":
    main()
