"""Quality of the saliency maps of one run: grid, localisation, faithfulness, randomisation.

  python benchmarks/maps.py build/demo/runs/act-da

Prints means over utterances of the dev split, by which the stages to fuse are chosen. `python -m training study` has
the figures of the test split for all variants and seeds, with intervals over seeds, to check that choice.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `training` is not the file in this folder

from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.manifest import Split, load_corpus
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, Condition
from speakerlens.training.evaluation.maps.attributions import FUSIONS, METHODS
from speakerlens.training.evaluation.maps.faithfulness import BINS, CELLS, Masking, faithfulness
from speakerlens.training.evaluation.maps.localisation import localisation
from speakerlens.training.evaluation.maps.probes import Probes, choose_probes
from speakerlens.training.evaluation.maps.randomisation import randomisation
from speakerlens.training.evaluation.maps.ranking import rank, recommend
from speakerlens.training.evaluation.maps.spectrum import map_spectra
from speakerlens.training.evaluation.workers import Networks
from speakerlens.training.model.network import STAGES

NOISY = Condition("noise", 5.0)


def main(words: Sequence[str] | None = None) -> int:
    """Print all tables of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument(
        "--split", choices=["dev", "test"], default="dev", help="utterances to measure on (%(default)s)"
    )
    parser.add_argument("--utterances", type=int, default=24, help="how many (%(default)s)")
    arguments = parser.parse_args(words)
    try:
        judge(arguments.run, arguments.split, arguments.utterances)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def judge(folder: Path, split: Split, utterances: int) -> None:
    """Print all tables of the run in a folder; UserError for wrong input."""
    if utterances < 1:
        raise UserError(f"--utterances must be at least 1, not {utterances}")
    run = load_run(folder)
    probes = choose_probes(load_corpus(run.corpus), run.speakers, utterances, split)
    networks = {run.variant: run.network}
    for table in (print_grid, print_localisation, print_faithfulness, print_randomisation):
        table(networks, probes)
        print()


def print_grid(networks: Networks, probes: Probes) -> None:
    """Print the strength of the grid at either tap of each stage."""
    print("grid: decibels in the corners of the spectrum over those beside; spread of the positions of a 2x2 cell")
    for found in map_spectra(networks, probes, silent):
        used = "  maps are taken here" if found.used else ""
        print(f"  {found.stage}  {found.tap:17}  {found.grid_db:5.1f} dB  {found.spread:.2f}{used}")


def print_localisation(networks: Networks, probes: Probes) -> None:
    """Print the localisation of each map."""
    (found,) = localisation(networks, probes, silent)
    print("target, interferer, target in turn: area under the ROC curve by frames, and by bins")
    for name in found.frames:
        print(f"  {name:25} {mean(found.frames, name):.3f}  {mean(found.bins, name):.3f}")


def print_faithfulness(networks: Networks, probes: Probes) -> None:
    """Print the ranking of the methods by deletion and insertion, masking single bins and cells."""
    methods = tuple(dict.fromkeys((*METHODS, *FUSIONS)))
    for cell in (BINS, CELLS):
        found = faithfulness(networks, probes, (CLEAN, NOISY), silent, methods, Masking(cell=cell))
        print(f"area under the probability, clean and {NOISY}, masking {cell[0]} x {cell[1]} bins: deletion, insertion")
        for row in rank(found):
            low, high = row.behind_interval
            areas = f"{row.deletion:.3f}  {row.insertion:.3f}  difference {row.faithfulness:.3f}"
            print(f"  {row.method:18} {areas}  behind the best {row.behind:.3f} [{low:.3f}, {high:.3f}]")
        print(f"  to fuse: {', '.join(STAGES[stage].upper() for stage in recommend(found))}")


def print_randomisation(networks: Networks, probes: Probes) -> None:
    """Print the similarity of each map to its original along the cascade."""
    found = randomisation(networks, probes, silent)
    steps: Sequence[str] = tuple(dict.fromkeys(row.step for row in found))
    print("rank correlation with the original map, randomised from the head down to")
    print(" " * 20 + "".join(f"{step:>10}" for step in steps))
    for name in dict.fromkeys(row.map for row in found):
        values = {row.step: row.rank_correlation for row in found if row.map == name}
        print(f"  {name:18}" + "".join(f"{mean(values, step):10.2f}" for step in steps))


def mean(values: Mapping[str, Sequence[float]], name: str) -> float:
    """Return the mean over the utterances that have a value."""
    return float(np.nanmean(values[name]))


def silent(done: int, total: int) -> None:
    """Ignore progress."""


if __name__ == "__main__":
    sys.exit(main())
