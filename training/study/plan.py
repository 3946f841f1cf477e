"""The runs of a study: one for each seed and variant, all on one corpus with one configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speakerlens.training.checkpoint import CHECKPOINT, read_checkpoint
from speakerlens.training.config import Config
from speakerlens.training.data.manifest import Corpus
from speakerlens.training.errors import UserError
from speakerlens.training.fit import check_same_run
from speakerlens.training.variants import VARIANTS, find_variant


@dataclass(frozen=True)
class PlannedRun:
    """One training of the study.

    Attributes:
        seed: of its initial weights and its batches.
        variant: a key of `training.variants.VARIANTS`.
        folder: its run folder, `OUT/runs/seed-S/VARIANT`.
    """

    seed: int
    variant: str
    folder: Path

    def __str__(self) -> str:
        """Return the name used in progress displays and messages."""
        return f"seed {self.seed}, {self.variant}"

    @property
    def output(self) -> Path:
        """Return the file for the output of its training process."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        config: of every run, but for the seed.
        corpus: of every run.
        out: the study's folder.
        variants: in the order in which they are trained and shown.
        seeds: likewise.
    """

    config: Config
    corpus: Corpus
    out: Path
    variants: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Return all runs in the order of work: seed by seed, so that an unfinished study can be compared."""
        return tuple(
            PlannedRun(seed, variant, self.out / "runs" / f"seed-{seed}" / variant)
            for seed in self.seeds
            for variant in self.variants
        )

    def work(self, variant: str) -> float:
        """Return the network work per update of a variant, in batches that go forward and backward."""
        return VARIANTS[variant].passes(self.config.interference.share, self.config.objective.clean_gradient)

    def config_of(self, run: PlannedRun) -> Config:
        """Return the configuration of a run."""
        return replace(self.config, seed=run.seed)


def make_plan(config: Config, corpus: Corpus, out: Path, variants: Sequence[str], seeds: int) -> Plan:
    """Plan `seeds` runs of each variant, from the configuration's seed upwards.

    Raises:
        UserError: a variant is unknown or named twice, there is no seed, the configuration stops early, or `out` holds
            runs of another configuration or corpus.
    """
    if config.stopping is not None:
        raise UserError(
            "a study compares variants after the same number of updates, and this configuration stops early: choose "
            "another, such as training/configs/study.yaml, or add --set stopping=null"
        )
    for variant in variants:
        find_variant(variant)
    if len(set(variants)) != len(variants):
        raise UserError(f"--variants {','.join(variants)}: names a variant twice")
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    plan = Plan(config, corpus, out, tuple(variants), tuple(range(config.seed, config.seed + seeds)))
    for run in plan.runs:
        if (run.folder / CHECKPOINT).exists():
            check_same_run(run.folder, read_checkpoint(run.folder), plan.config_of(run), run.variant, corpus)
    return plan


def updates_done(run: PlannedRun) -> int:
    """Return the number of updates in a run's checkpoint; 0 without one."""
    return read_checkpoint(run.folder)["step"] if (run.folder / CHECKPOINT).exists() else 0
