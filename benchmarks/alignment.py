"""Ways to align a corrupted copy's activations with its original's, compared on the dev split at equal compute.

  python benchmarks/alignment.py --corpus DIR --recipes da-2x,act-da --seeds 2 --updates 800
  python benchmarks/alignment.py --corpus DIR --recipes configured --set objective.align=[s4]

Every recipe passes about two batch sizes through the network, forward and backward, in an update. Prints, for each
recipe and seed, the accuracy on dev utterances after the last update: clean, by kind of interference, and their mean.
"""

import argparse
import copy
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # or `training` would be the file beside this one

from speakerlens.training.config import Config, load_config
from speakerlens.training.data.batches import Batch, BatchSource
from speakerlens.training.data.manifest import Corpus, load_corpus
from speakerlens.training.data.mixing import KINDS
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import CLEAN, CLEAN_KIND, Condition, mixtures, supplied_grid
from speakerlens.training.loop import make_optimiser
from speakerlens.training.model.network import Activations, SpeakerNetwork
from speakerlens.training.model.objectives import compute_loss, distance
from speakerlens.training.schedule import learning_rate_at, margin_at
from speakerlens.training.variants import find_variant

SNRS_DB = (10.0, 5.0, 0.0, -5.0)
DECAY = 0.99  # of the averaged teacher's weights


@dataclass(frozen=True)
class Recipe:
    """A layout of the batch and a way of alignment.

    variant: of `training.variants.VARIANTS`, for the layout of the batch.
    teacher: the network that embeds the originals: the trained network ("live"), the same with the running statistics
        of its normalisation ("eval"), or an exponential average of its weights ("averaged"); "pair": they are rows of
        the batch; "configured": the objective of training, as configured.
    weight: of the embeddings' squared distance; posterior_weight: of the divergence of the logits' softmax.
    """

    variant: str
    teacher: Literal["pair", "live", "eval", "averaged", "configured"] = "live"
    weight: float = 0.0
    posterior_weight: float = 0.0


RECIPES = {
    "da-2x": Recipe("da-2x"),
    "da-pair": Recipe("da-pair"),
    "act-pair": Recipe("act-pair", "pair", 1.0),
    "act-pair-posterior": Recipe("act-pair", "pair", 0.0, 1.0),
    "act-da": Recipe("act-da", "live", 1.0),
    "act-da-3": Recipe("act-da", "live", 3.0),
    "act-da-eval": Recipe("act-da", "eval", 1.0),
    "act-da-averaged": Recipe("act-da", "averaged", 1.0),
    "act-da-posterior": Recipe("act-da", "live", 0.0, 1.0),
    "act-da-averaged-posterior": Recipe("act-da", "averaged", 0.0, 1.0),
    "configured": Recipe("act-da", "configured"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("training/configs/study.yaml"), help="(%(default)s)")
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `prepare` made")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="with commas (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (%(default)s)")
    parser.add_argument("--updates", type=int, default=800, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="override a value of the configuration",
    )
    arguments = parser.parse_args(words)
    try:
        compare(
            arguments.recipes.split(","),
            arguments.config,
            arguments.corpus,
            arguments.seeds,
            arguments.updates,
            arguments.settings,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(
    recipes: Sequence[str], config_file: Path, folder: Path, seeds: int, updates: int, settings: Sequence[str]
) -> None:
    """Train each recipe from each seed and print its accuracy; raise UserError for wrong input before any training."""
    if unknown := [name for name in recipes if name not in RECIPES]:
        raise UserError(f'--recipes: unknown recipe "{unknown[0]}"; the recipes are {", ".join(RECIPES)}')
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    configs = [load_config(config_file, [*settings, f"updates={updates}", f"seed={seed}"]) for seed in range(seeds)]
    corpus = load_corpus(folder)
    if not corpus.utterances("dev"):
        raise UserError(f"{folder}: has no dev utterances to compare the recipes on")
    left_out = supplied_grid(corpus, "dev")[1]
    if lacking := [kind for kind in KINDS if kind in left_out]:
        raise UserError(
            f"{folder}: its dev split has no {lacking[0]} ({left_out[lacking[0]]}); recipes are compared on it"
        )
    for config in configs:
        for name in recipes:
            accuracy = dev_accuracy(train(RECIPES[name], config, corpus), corpus)
            run = {"recipe": name, "seed": config.seed, "updates": config.updates, "settings": settings}
            print(json.dumps({**run, **accuracy}), flush=True)


def train(recipe: Recipe, config: Config, corpus: Corpus) -> SpeakerNetwork:
    """Train a network on the CPU in bfloat16."""
    torch.manual_seed(config.seed)
    network = SpeakerNetwork(config.network, config.head, len(corpus.speakers)).train()
    averaged = copy.deepcopy(network).eval()
    optimiser = make_optimiser(network, config.optimiser)
    source = BatchSource(corpus, config, find_variant(recipe.variant), torch.device("cpu"))
    for step in range(config.updates):
        batch = source.batch(step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(config.optimiser, step, config.updates)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            margin = margin_at(config.head, step, config.updates)
            if recipe.teacher == "configured":
                variant = find_variant(recipe.variant)
                inputs = batch.audio, batch.labels, batch.originals
                loss = compute_loss(network, *inputs, variant, config.objective, margin).total
            else:
                loss = _loss(recipe, network, averaged, batch, margin)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), config.optimiser.clip_norm)
        optimiser.step()
        _follow(averaged, network, min(DECAY, (step + 1) / (step + 10)))
    return network.eval()


def _loss(recipe: Recipe, network: SpeakerNetwork, averaged: SpeakerNetwork, batch: Batch, margin: float) -> Tensor:
    activations = network.activations(batch.audio)
    scores = network.training_logits(activations.embedding, batch.labels, margin)
    loss = F.cross_entropy(scores, batch.labels)
    if not recipe.weight and not recipe.posterior_weight:
        return loss
    teacher = averaged if recipe.teacher == "averaged" else network
    if recipe.teacher == "pair":
        originals, copies = activations.embedding.chunk(2)
    else:
        originals = _embed_originals(recipe, teacher, batch.originals).embedding
        copies = activations.embedding[: len(batch.originals)]
    originals = originals.detach()
    aligned = distance(originals, copies, "mse").mean()
    wanted, given = teacher.logits(originals).detach().softmax(1), network.logits(copies).log_softmax(1)
    return loss + recipe.weight * aligned + recipe.posterior_weight * F.kl_div(given, wanted, reduction="batchmean")


def _embed_originals(recipe: Recipe, teacher: SpeakerNetwork, originals: Tensor) -> Activations:
    training = teacher.training
    if recipe.teacher == "eval":
        teacher.eval()
    with torch.no_grad():
        activations = teacher.activations(originals)
    teacher.train(training)
    return activations


@torch.no_grad()
def _follow(averaged: SpeakerNetwork, network: SpeakerNetwork, decay: float) -> None:
    for average, weight in zip(averaged.parameters(), network.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)
    for theirs, ours in zip(averaged.buffers(), network.buffers(), strict=True):
        theirs.copy_(ours)


def dev_accuracy(network: SpeakerNetwork, corpus: Corpus) -> dict[str, float]:
    """Return top-1 accuracy in percent: on clean dev utterances, by kind of interference, and the mean of the kinds."""
    conditions: Sequence[Condition] = [CLEAN, *(Condition(kind, snr_db) for kind in KINDS for snr_db in SNRS_DB)]
    hits: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        for batch in mixtures(corpus, "dev", corpus.speakers, conditions, 4):
            scores = network(batch.mixture.audio, batch.lengths)[0]
            hits[batch.condition.kind].append(scores.argmax(dim=1) == batch.labels)
    accuracy = {kind: round(100 * torch.cat(rows).double().mean().item(), 1) for kind, rows in hits.items()}
    mean = sum(value for kind, value in accuracy.items() if kind != CLEAN_KIND) / len(KINDS)
    return {**accuracy, "mean": round(mean, 1)}


if __name__ == "__main__":
    sys.exit(main())
