"""Metrics of the store of enrolled speakers, and of the journal of decisions."""

from speakerlens.serving.metrics.registry import Page

AUDIO = ("kept", "none")
LINES = ("written", "failed")


class Store:
    """All metrics of the store.

    Args:
        page: creates the metrics.
    """

    def __init__(self, page: Page) -> None:
        self.up = page.gauge("store_up", "1 while the store of enrolled speakers can be used.", "kind")
        self.outdated = page.gauge(
            "outdated_speakers",
            "Speakers whom no newest version of a variant has exemplars of, by whether their audio is kept: those "
            "without must enrol again.",
            "audio",
        )
        self.forgotten = page.counter("forgotten_exemplars", "Exemplars that were removed for their age.")
        self.journal = page.counter("journal_lines", "Lines of the journal of decisions, by outcome.", "outcome")
        for outcome in LINES:
            self.journal.labels(outcome)
