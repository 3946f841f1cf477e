"""Metrics of search: decisions, and the speakers that are searched."""

from contextlib import suppress

from speakerlens.serving.metrics.registry import Page

DECISIONS = ("speaker", "unknown", "ambiguous", "unreliable")


class Search:
    """All metrics of search.

    Args:
        page: creates the metrics.
    """

    def __init__(self, page: Page) -> None:
        self.decisions = page.counter(
            "search_decisions",
            "Decisions of searches; of a stream, one for each window with speech.",
            "variant",
            "decision",
        )
        self.speakers = page.gauge(
            "gallery_speakers", "Speakers in the gallery of a model that is searched.", "variant", "version"
        )

    def add_variant(self, variant: str) -> None:
        """Start the counters of a loaded variant at 0."""
        for decision in DECISIONS:
            self.decisions.labels(variant, decision)

    def remove_model(self, variant: str, version: str) -> None:
        """Remove the gallery of a model that is no longer served."""
        with suppress(KeyError):  # it was never searched
            self.speakers.remove(variant, version)
