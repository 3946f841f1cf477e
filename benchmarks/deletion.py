"""Agreement of the deletion index by an estimated noise floor with that by the true mask.

  python benchmarks/deletion.py build/demo/bundles/act-da/1 --corpus build/demo/corpus --out figures.json

A server has only the mixture, and estimates the bins of the interference from a stationary noise floor; the evaluation
has both parts of the mixture. For each kind of interference and SNR, over utterances of the evaluation set: agreement
of the two masks over bins, both indices of the fused map of the predicted speaker, and their correlation over the
utterances. Then the same over all utterances of a kind, and over the conditions' means.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or `training` would be the file beside this one

from speakerlens.export.baseline import as_saliency
from speakerlens.export.onnx_graphs import EXPLAIN
from speakerlens.export.runtimes import load_runtimes
from speakerlens.measures.saliency import deletion_index, estimated_interference
from speakerlens.training.data.manifest import load_corpus, spread
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import Condition, mixtures, supplied_grid
from speakerlens.training.model.front_end import LogMel
from speakerlens.training.model.saliency import dominated_bins, fused

SNRS_DB = (20.0, 10.0, 0.0)


@dataclass(frozen=True)
class MaskedMap:
    """One utterance in one condition: bins by (true, estimated) mask, and both indices."""

    condition: Condition
    both: int
    truly: int
    estimated: int
    bins: int
    true_index: float
    estimated_index: float


@dataclass(frozen=True)
class Agreement:
    """Agreement of estimate and truth over some utterances: of the masks, over bins; of the indices, over utterances.

    `area` and `estimated_area` are the masks' shares of the bins, `correlation` is Pearson's and `rank_correlation`
    Spearman's, NaN for fewer than three.
    """

    utterances: int
    area: float
    estimated_area: float
    precision: float
    recall: float
    true_index: float
    estimated_index: float
    correlation: float
    rank_correlation: float


def main() -> int:
    """Print the table of each bundle; write the figures if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+", help="folder of one version of a bundle")
    parser.add_argument("--corpus", type=Path, required=True, help="the one it was trained on")
    parser.add_argument("--utterances", type=int, default=40, help="of the test split (%(default)s)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.utterances < 3:
        parser.error("--utterances must be at least 3: correlations are over them")
    torch.set_num_threads(1)
    figures = {}
    try:
        for bundle in arguments.bundles:
            variant = json.loads((bundle / "bundle.json").read_text("utf-8"))["variant"]
            figures[variant] = table(list(measured(bundle, arguments.corpus, arguments.utterances)))
            show(variant, figures[variant])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.out:
        content = {"utterances": arguments.utterances, "variants": figures}
        arguments.out.write_text(json.dumps(rounded(content), indent=1) + "\n", encoding="utf-8")
    return 0


def measured(bundle: Path, corpus_folder: Path, count: int) -> Iterator[MaskedMap]:
    """Yield both indices of a bundle's maps for utterances of the test split in every condition."""
    corpus = load_corpus(corpus_folder)
    manifest = json.loads((bundle / "bundle.json").read_text("utf-8"))
    explain, front_end = (
        load_runtimes(bundle, len(manifest["speakers"]))[EXPLAIN],
        LogMel(manifest["front_end"]["mel_bins"]),
    )
    conditions = [condition for condition in supplied_grid(corpus, "test")[0] if condition.snr_db in SNRS_DB]
    utterances = spread(corpus.utterances("test"), count)
    for batch in mixtures(corpus, "test", manifest["speakers"], conditions, 8, utterances):
        target = torch.full_like(batch.labels, -1)
        outputs = {n: torch.from_numpy(v) for n, v in explain(batch.mixture.audio, batch.lengths, target).items()}
        saliency = as_saliency(outputs, batch.lengths)
        maps, dominated = fused(saliency), dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)
        for row, frames in enumerate(saliency.frames.tolist()):
            shown, truly = maps[row, :, :frames].numpy(), dominated[row, :, :frames].numpy()
            estimated = estimated_interference(saliency.features[row, :, :frames].numpy())
            yield MaskedMap(
                batch.condition,
                int((truly & estimated).sum()),
                int(truly.sum()),
                int(estimated.sum()),
                truly.size,
                deletion_index(shown, truly),
                deletion_index(shown, estimated),
            )


def table(maps: Sequence[MaskedMap]) -> dict[str, Any]:
    """Return the agreement by condition, by interference over all SNRs, and over the means of conditions."""
    by_condition: dict[Condition, list[MaskedMap]] = defaultdict(list)
    for each in maps:
        by_condition[each.condition].append(each)
    conditions = {str(condition): agreement(rows) for condition, rows in by_condition.items()}
    kinds = dict.fromkeys(condition.kind for condition in by_condition)
    means = list(conditions.values())
    true, estimated = (np.array([getattr(each, name) for each in means]) for name in ("true_index", "estimated_index"))
    return {
        "conditions": {name: asdict(each) for name, each in conditions.items()},
        "kinds": {kind: asdict(agreement([each for each in maps if each.condition.kind == kind])) for kind in kinds},
        "correlation_over_conditions": correlation(true, estimated),
        "rank_correlation_over_conditions": correlation(ranks(true), ranks(estimated)),
    }


def agreement(maps: Sequence[MaskedMap]) -> Agreement:
    """Return the agreement over some utterances; those with an undefined index count for the masks only."""
    both, truly, estimated, bins = (
        sum(getattr(each, name) for each in maps) for name in ("both", "truly", "estimated", "bins")
    )
    indices = np.array([(each.true_index, each.estimated_index) for each in maps])
    true, guessed = indices[np.isfinite(indices).all(axis=1)].T
    return Agreement(
        len(maps),
        truly / bins,
        estimated / bins,
        both / max(estimated, 1),
        both / max(truly, 1),
        float(true.mean()),
        float(guessed.mean()),
        correlation(true, guessed),
        correlation(ranks(true), ranks(guessed)),
    )


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Pearson's correlation."""
    return float(np.corrcoef(first, second)[0, 1]) if len(first) > 2 else float("nan")


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value."""
    return values.argsort().argsort().astype(np.float64)


def rounded(content: Any) -> Any:
    """Return a copy with floats rounded to four decimals, for small diffs."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    return round(content, 4) if isinstance(content, float) else content


def show(variant: str, figures: dict[str, Any]) -> None:
    """Print the table of one variant."""
    print(
        f"{variant}: share of the bins, true and estimated; precision, recall; index, true and estimated; correlations"
    )
    for name, row in (*figures["conditions"].items(), *figures["kinds"].items()):
        masks = f"{row['area']:.2f} {row['estimated_area']:.2f}  {row['precision']:.2f} {row['recall']:.2f}"
        indices = f"{row['true_index']:.3f} {row['estimated_index']:.3f}"
        print(f"  {name:20} {masks}  {indices}  {row['correlation']:5.2f} {row['rank_correlation']:5.2f}")
    over = figures["correlation_over_conditions"], figures["rank_correlation_over_conditions"]
    print(f"  over the conditions' means: {over[0]:.2f}, of ranks {over[1]:.2f}")


if __name__ == "__main__":
    sys.exit(main())
