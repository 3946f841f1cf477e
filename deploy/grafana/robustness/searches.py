"""Panels on searches of the enrolled speakers."""

from deploy.grafana.expressions import VARIANT, per_second
from deploy.grafana.model import Panel, Query, Row, Unit

SEARCHES = Row(
    "Searches of the enrolled speakers",
    (
        Panel(
            "Decisions of searches",
            "How do searches end?",
            "More `unknown`: others speak, or enrolments are old. More `unreliable`: noise, short or narrow audio.",
            Unit.PER_SECOND,
            (Query(per_second("search_decisions_total", VARIANT, by="decision"), "{{decision}}"),),
            limits=(0, None),
            width=12,
        ),
        Panel(
            "Searches by variant",
            "With which model are speakers searched?",
            "Speakers are enrolled with one version of a model: after a new version, searches must follow.",
            Unit.PER_SECOND,
            (Query(per_second("search_decisions_total", VARIANT, by="variant"), "{{variant}}"),),
            limits=(0, None),
            width=12,
        ),
    ),
)
