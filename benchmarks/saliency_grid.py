"""How strong the 2x2 grid is that strided convolutions leave in saliency maps, at either tap of each stage.

  python benchmarks/saliency_grid.py build/demo/runs/act-da

Prints, for each stage and tap, the spread between the means of the four positions of a 2x2 cell, over their mean, as
the median over utterances of the test split. 0 is no grid; the last stage, which feeds no strided convolution, shows
how much of it the map's own structure makes.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from training.audio import read_audio
from training.checkpoint import load_run
from training.errors import UserError
from training.manifest import load_corpus

UTTERANCES = 30


def grid_strength(stage_map: Tensor) -> float:
    """Spread of the means of the four positions of a 2x2 cell over their mean, for a map [rows, columns]."""
    rows, columns = stage_map.shape[0] // 2, stage_map.shape[1] // 2
    cells = stage_map[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(dim=(0, 2))
    return float(((cells.max() - cells.min()) / cells.mean()).detach())


def main() -> int:
    """Print the table of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    try:
        run = load_run(parser.parse_args().run)
        corpus = load_corpus(run.corpus)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    network = run.network
    strengths: dict[tuple[int, str], list[float]] = {}
    for clip in corpus.utterances("test")[:: max(1, len(corpus.utterances("test")) // UTTERANCES)]:
        features, frames = network.front_end(torch.from_numpy(read_audio(clip.path, clip.start, clip.duration))[None])
        activations = network.encoder(features.requires_grad_(), frames, masked=False)
        score = network.logits(activations.embedding).max()
        taps = {"stage-output": activations.stages, "last-block-input": activations.block_inputs}
        for tap, tensors in taps.items():
            gradients = torch.autograd.grad(score, tensors, retain_graph=True)
            for stage, (gradient, activation) in enumerate(zip(gradients, tensors, strict=True), start=1):
                if stage == 1 and len(network.encoder.layers[0]) == 1 and tap == "last-block-input":
                    continue  # the input of a first stage of one block is the stem
                stage_map = (gradient.relu() * activation).sum(dim=1).relu()[0]
                strengths.setdefault((stage, tap), []).append(grid_strength(stage_map))
    for (stage, tap), values in sorted(strengths.items()):
        print(f"S{stage}  {tap:17}  {median(values):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
