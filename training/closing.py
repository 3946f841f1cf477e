"""What a run says about its course: why the learning rate falls, what was reached, whether it still rises."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from speakerlens.training.config import Config
from speakerlens.training.schedule import Progress, Schedule

_RISE = 1.0
"""Points of accuracy between two measurements that count as a rise, where the configuration does not say."""


class Measurement(NamedTuple):
    """Accuracy on the dev split in percent, by condition, after `done` updates."""

    done: int
    accuracy: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the conditions."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def falling(schedule: Schedule) -> str:
    """Return why the learning rate falls from now on."""
    progress = schedule.progress
    why = {
        "no rise": f"dev accuracy has not risen since update {progress.best_at} (mean {progress.best:.1f} %)",
        "minutes": "the bound in minutes is near",
        "updates": "the most updates are near",
        None: "",
    }[progress.reason]
    return f"{why}: the learning rate falls until update {schedule.end}, the last"


def closing(measured: Sequence[Measurement], progress: Progress, config: Config) -> str:
    """Return what a finished run has reached and whether it still rises, to follow "finished, N updates".

    Args:
        measured: dev accuracies of this run since it was started or resumed.
        progress: of a run with `stopping`.
        config: of the run.
    """
    if not measured:
        return ""
    last = measured[-1]
    reached = ", ".join(f"{value:.1f} % {condition}" for condition, value in last.accuracy.items())
    if progress.reason == "no rise":
        course = f"; it had stopped rising at update {progress.best_at}, before the learning rate fell"
    elif progress.reason is not None and config.stopping is not None:
        more = (
            f"--minutes {2 * config.stopping.minutes:g}"
            if progress.reason == "minutes"
            else f"--updates {2 * last.done}"
        )
        course = f"; it was still rising when the bound was reached: {more} may reach more"
    elif len(measured) > 1 and last.mean >= measured[-2].mean + _RISE:
        rise, before = last.mean - measured[-2].mean, measured[-2].done
        course = f"; still rising, by {rise:.1f} points since update {before}: --updates {2 * last.done} may reach more"
    else:
        course = "; no longer rising" if len(measured) > 1 else ""
    return f"; dev accuracy {reached}{course}"
