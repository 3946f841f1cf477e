"""Panels on the store of enrolled speakers, and on the journal of decisions."""

from deploy.grafana.expressions import VARIANT, per_second, select
from deploy.grafana.model import Panel, Query, Row, Unit

STORE = Row(
    "Enrolled speakers and journal",
    (
        Panel(
            "Store",
            "Can each server use its store of enrolled speakers (1), or not (0)?",
            "At 0 enrolments, searches and verifications by name are UNAVAILABLE: the server's log has the reason. No "
            "data: no server has --speakers.",
            Unit.COUNT,
            (Query(select("store_up"), "{{instance}} {{kind}}"),),
            width=6,
            limits=(0, 1),
        ),
        Panel(
            "Speakers searched",
            "How many speakers does each model find in its gallery? Only models that were searched are shown.",
            "A new version at 0: no speaker is enrolled with it; where audio is kept, `gallery migrate` helps.",
            Unit.COUNT,
            (
                Query(
                    f"max by (variant, version) ({select('gallery_speakers', VARIANT)})",
                    "{{variant}} {{version}}",
                ),
            ),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Speakers that the newest versions do not know",
            "How many speakers have no exemplars of a newest version, by whether their audio is kept?",
            "kept: `speakerlens gallery migrate`. none: they must enrol again.",
            Unit.COUNT,
            (Query(f"max by (audio) ({select('outdated_speakers')})", "audio {{audio}}"),),
            width=6,
            limits=(0, None),
        ),
        Panel(
            "Journal and forgotten exemplars",
            "How many decisions are written to the journal, and how many exemplars are removed for their age?",
            "failed above 0: decisions are not accounted for; look at the disk of --journal.",
            Unit.PER_SECOND,
            (
                Query(per_second("journal_lines_total", by="outcome"), "lines {{outcome}}"),
                Query(per_second("forgotten_exemplars_total"), "exemplars forgotten"),
            ),
            width=6,
            limits=(0, None),
        ),
    ),
)
