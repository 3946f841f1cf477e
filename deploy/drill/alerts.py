"""When alerts began to fire and cleared during a drill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy.prometheus_api import Prometheus

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """An alert that began to fire or cleared, with the seconds from the start of the drill."""

    seconds: float
    firing: bool
    name: str
    labels: Labels

    def __str__(self) -> str:
        """Return one line: `FIRES   SpeakerlensDrift (snr_db, act-da)`."""
        of = ", ".join(self.labels[name] for name in ("measure", "variant", "first", "second") if name in self.labels)
        return f"{'FIRES ' if self.firing else 'clears'}  {self.name}{f' ({of})' if of else ''}"


@dataclass(frozen=True)
class Expected:
    """An alert that must fire in a drill.

    Attributes:
        name: of the alert.
        labels: required labels; others are ignored.
    """

    name: str
    labels: Labels


@dataclass
class Watch:
    """Record the changes of a Prometheus' alerts, one poll at a time."""

    prometheus: Prometheus
    changes: list[Change] = field(default_factory=list)
    _firing: dict[tuple[tuple[str, str], ...], Labels] = field(default_factory=dict)

    def poll(self, seconds: float) -> list[Change]:
        """Return the changes since the last poll, stamped with the seconds since the beginning."""
        alerts = [each["labels"] for each in self.prometheus.get("alerts")["alerts"] if each["state"] == "firing"]
        firing: dict[tuple[tuple[str, str], ...], Labels] = {tuple(sorted(each.items())): each for each in alerts}
        found = [Change(seconds, True, firing[key]["alertname"], firing[key]) for key in firing.keys() - self._firing]
        over = self._firing.keys() - firing
        found += [Change(seconds, False, self._firing[key]["alertname"], self._firing[key]) for key in over]
        self._firing = firing
        self.changes += found
        return found


def faults(changes: Sequence[Change], expected: Sequence[Expected], begin: float, end: float) -> list[str]:
    """Return what went wrong, as sentences: an expected alert that did not fire in time or clear, or a critical one.

    Args:
        changes: of the whole drill, in order.
        expected: alerts that must fire.
        begin: of the interference, in seconds after the beginning.
        end: of the interference.
    """
    found = [f"{change} at {change.seconds:.0f} s" for change in changes if change.firing and _critical(change)]
    for alert in expected:
        mine = [change for change in changes if change.name == alert.name and _has(change.labels, alert.labels)]
        named = f"{alert.name} ({', '.join(alert.labels.values())})"
        # Of one set of labels, firing and clearing alternate; the first to fire and the last to clear are what counts.
        fired = [change.seconds for change in mine if change.firing]
        if not fired:
            found.append(f"{named} never fired")
            continue
        if fired[0] < begin:
            found.append(f"{named} fired at {fired[0]:.0f} s, before there was interference")
        if not any(begin <= moment <= end for moment in fired):
            found.append(f"{named} did not fire between {begin:.0f} s and {end:.0f} s, but at {fired[0]:.0f} s")
        if sum(1 if change.firing else -1 for change in mine):
            found.append(f"{named} has not cleared")
    return found


def _critical(change: Change) -> bool:
    return change.labels.get("severity") == "critical"


def _has(labels: Labels, wanted: Labels) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())
