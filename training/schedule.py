"""The course of a run: learning rate, margin, and where it ends.

Without `stopping` the course is a function of the number of updates alone, so that variants are compared after equal
training. With it, the learning rate stays at its highest until the accuracy on the dev split has stopped rising, then
falls over a share of the updates done so far (warm-up, constant, decay; Hägele et al. 2024, arXiv 2405.18392), and the
run ends. Decisions follow from the accuracies, which are functions of configuration, corpus and seed, except for the
bound in minutes; all are saved in the checkpoint, so that a resumed run equals an uninterrupted one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from speakerlens.training.config import Config, HeadConfig, OptimiserConfig

Reason = Literal["no rise", "minutes", "updates"]


@dataclass
class Progress:
    """What a run with `stopping` has measured so far.

    Attributes:
        best: highest mean accuracy on the dev split, in percent; -1 before the first.
        best_at: updates done when it was measured.
        measured: how many measurements have not risen since.
        seconds: training time so far.
        decay_from: updates done when the learning rate began to fall; None before.
        reason: why it began to fall.
    """

    best: float = -1.0
    best_at: int = 0
    measured: int = 0
    seconds: float = 0.0
    decay_from: int | None = None
    reason: Reason | None = None


class Schedule:
    """The course of a run.

    Args:
        config: of the run.
        progress: of the run so far; a new run if None.
    """

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        self._config = config
        self.progress = Progress() if progress is None else progress

    @property
    def end(self) -> int:
        """Updates of the whole run; the most it can have while its end is not decided."""
        stopping, begin = self._config.stopping, self.progress.decay_from
        if stopping is None or begin is None:
            return self._config.updates
        return min(self._config.updates, begin + max(1, round(stopping.decay * begin)))

    @property
    def growth(self) -> tuple[float, float]:
        """Updates after which the margin begins to grow, and after which it is fully grown."""
        return self._config.head.margin_from * self._ramp, self._config.head.margin_until * self._ramp

    @property
    def _ramp(self) -> int:
        """Updates that warm-up and margin are shares of."""
        stopping = self._config.stopping
        return self._config.updates if stopping is None else min(stopping.ramp, self._config.updates)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of update `step` (from 0)."""
        optimiser, begin = self._config.optimiser, self.progress.decay_from
        if self._config.stopping is None:
            return learning_rate_at(optimiser, step, self._config.updates)
        if begin is not None and step >= begin:
            return decayed(optimiser, (step - begin + 1) / (self.end - begin))
        return min(1.0, (step + 1) / max(1, round(optimiser.warmup * self._ramp))) * optimiser.learning_rate

    def margin(self, step: int) -> float:
        """Return the margin in radians at update `step` (from 0)."""
        return margin_at(self._config.head, step, self._ramp)

    def is_averaged(self, step: int) -> bool:
        """Return whether the weights after update `step` (from 0) are averaged."""
        if self._config.stopping is not None and self.progress.decay_from is None:
            return False
        return is_averaged(self._config.optimiser, step, self.end)

    def observe(self, done: int, accuracy: Mapping[str, float], seconds: float) -> bool:
        """Take note of an accuracy on the dev split; return whether the learning rate begins to fall now.

        Args:
            done: updates done.
            accuracy: in percent, by condition.
            seconds: training time so far.
        """
        stopping, progress = self._config.stopping, self.progress
        progress.seconds = seconds
        if stopping is None or progress.decay_from is not None:
            return False
        mean = sum(accuracy.values()) / len(accuracy)
        if mean >= progress.best + stopping.rise or progress.best < 0:
            progress.best, progress.best_at, progress.measured = mean, done, 0
        else:
            progress.measured += 1
        if done >= self._ramp and progress.measured >= stopping.patience:
            return self._decay(done, "no rise")
        return self.check_bounds(done, seconds)

    def check_bounds(self, done: int, seconds: float) -> bool:
        """Return whether the learning rate must begin to fall now, to end within the bounds of minutes and updates."""
        stopping, progress = self._config.stopping, self.progress
        progress.seconds = seconds
        if stopping is None or progress.decay_from is not None:
            return False
        if seconds * (1 + stopping.decay) >= 60 * stopping.minutes:
            return self._decay(done, "minutes")
        if (done + 1) * (1 + stopping.decay) > self._config.updates:
            return self._decay(done, "updates")
        return False

    def _decay(self, done: int, reason: Reason) -> bool:
        self.progress.decay_from, self.progress.reason = done, reason
        return True


def decayed(config: OptimiserConfig, progress: float) -> float:
    """Return the learning rate at a share of its decay, from 0 to 1."""
    high, low = config.learning_rate, config.final_learning_rate
    if config.decay == "cosine":
        return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.decay == "exponential":
        return high * math.exp(math.log(low / high) * progress)
    return high


def learning_rate_at(config: OptimiserConfig, step: int, updates: int) -> float:
    """Return the learning rate of update `step` (from 0) of `updates`: linear warm-up, then decay."""
    warmup = round(config.warmup * updates)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return decayed(config, (step - warmup) / max(1, updates - 1 - warmup))


def margin_at(config: HeadConfig, step: int, updates: int) -> float:
    """Return the margin in radians at update `step` (from 0) of `updates`."""
    begin, end = config.margin_from * updates, config.margin_until * updates
    if step >= end:
        return config.margin
    if step <= begin:  # also if the growth takes no updates
        return 0.0
    return config.margin * (step - begin) / (end - begin)


def is_averaged(config: OptimiserConfig, step: int, updates: int) -> bool:
    """Return whether the weights after update `step` (from 0) are averaged; those of the last update always are."""
    return step >= min(updates - 1, round((1 - config.average_last) * updates))
