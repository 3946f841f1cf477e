"""Dataclasses for dashboards and panels, and the layout of panels on the grid.

`deploy.grafana.rendering` turns them into Grafana's JSON.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from speakerlens import palette

COLUMNS = 24
ROW_HEIGHT = 1


class Kind(StrEnum):
    """How a panel shows its results; the values are Grafana's names."""

    LINES = "timeseries"
    NUMBER = "stat"
    HEATMAP = "heatmap"
    TABLE = "table"


class Unit(StrEnum):
    """Units of what panels show; the values are Grafana's."""

    COUNT = "short"
    SHARE = "percentunit"
    SECONDS = "s"
    PER_SECOND = "cps"
    CALLS_PER_SECOND = "reqps"
    BYTES = "bytes"
    DECIBELS = "dB"
    FULL_SCALE = "suffix: dBFS"
    HERTZ = "hertz"
    NATS = "suffix: nats"
    CORES = "suffix: cores"
    TIMES_REAL_TIME = "suffix: x"
    RATIO = "none"


class Colour(StrEnum):
    """Colours of thresholds. Panels write the state's name, in lower case, beside them."""

    GOOD = palette.GOOD
    WATCH = palette.WATCH
    BAD = palette.BAD


@dataclass(frozen=True)
class Query:
    """A PromQL expression with Grafana's variables in it, and the name of its series: `{{label}}` is a label's value.

    A reference, such as the expected accuracy, is drawn dashed.
    """

    expression: str
    legend: str
    reference: bool = False


@dataclass(frozen=True)
class Threshold:
    """A colour from a value on."""

    value: float
    colour: Colour


@dataclass(frozen=True)
class Matrix:
    """A table with a row for each value of one label, and a column for each value of another."""

    rows: str
    columns: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: of the panel, unique in its dashboard.
        question: that it answers, with its question mark.
        action: what to do about a bad answer.
        unit: of every value.
        queries: with their legends; those of a heatmap give buckets, by `le`.
        kind: how it is shown.
        width: in columns, of COLUMNS.
        height: in Grafana's units of 30 pixels.
        thresholds: ascending; below the first the value is `floor`.
        floor: the colour below the first threshold.
        limits: of the axis; None leaves an end to the data.
        stacked: areas on top of one another, for parts of a whole.
        matrix: for tables with a value in each cell.
        columns: labels that a table without matrix shows, in this order.
    """

    title: str
    question: str
    action: str
    unit: Unit
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    height: int = 8
    thresholds: tuple[Threshold, ...] = ()
    floor: Colour = Colour.GOOD
    limits: tuple[float | None, float | None] = (None, None)
    stacked: bool = False
    matrix: Matrix | None = None
    columns: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Return the text of the panel's (i)."""
        return "\n\n".join((self.question, self.action, *([f"States: {self._states()}."] if self.thresholds else [])))

    @property
    def instant(self) -> bool:
        """Return whether only the present is queried, not a range of time."""
        return self.kind is Kind.TABLE

    def _states(self) -> str:
        texts = [f"{each.colour.name.lower()} from {each.value:g}" for each in self.thresholds]
        return ", ".join([f"{self.floor.name.lower()} below {self.thresholds[0].value:g}", *texts])


@dataclass(frozen=True)
class Number(Panel):
    """A panel for the row At a glance: the last value of each series, large.

    With thresholds, the name of each series ends in its state: the queries are given a label `state`.
    """

    kind: Kind = Kind.NUMBER
    width: int = 3
    height: int = 4

    def __post_init__(self) -> None:
        if self.thresholds:
            judged = tuple(self._judged(query) for query in self.queries)
            object.__setattr__(self, "queries", judged)  # frozen

    @property
    def instant(self) -> bool:
        """Return whether only the present is queried: over a range, a series would have had several states."""
        return bool(self.thresholds)

    def _judged(self, query: Query) -> Query:
        """Return a query whose series have the label `state`, and show it."""
        ends = [None, *(each.value for each in self.thresholds), None]
        colours = [self.floor, *(each.colour for each in self.thresholds)]
        bands = []
        for colour, low, high in zip(colours, ends[:-1], ends[1:], strict=True):
            within = ("" if low is None else f" >= {low:g}") + ("" if high is None else f" < {high:g}")
            bands.append(f'label_replace(({query.expression}){within}, "state", "{colour.name.lower()}", "", "")')
        legend = f"{query.legend}: {{{{state}}}}" if "{{" in query.legend else "{{state}}"
        return Query(" or ".join(bands), legend, query.reference)


@dataclass(frozen=True)
class Row:
    """Panels under a title, from left to right, in as many lines as they need."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the dashboard: the values of a label; several may be chosen, and All matches `.*`."""

    name: str
    label: str
    series: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; `uid` is in its address and in links to it."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = field(default=())

    @property
    def panels(self) -> list[Panel]:
        """Return all panels, in order."""
        return [panel for row in self.rows for panel in row.panels]


@dataclass(frozen=True)
class Place:
    """A place on the grid, in columns and units of height."""

    x: int
    y: int
    width: int
    height: int


def layout(dashboard: Dashboard) -> Iterator[tuple[Row | Panel, Place]]:
    """Yield every row title and panel with its place, in order.

    Raises:
        ValueError: a panel is wider than the grid.
    """
    y = 0
    for row in dashboard.rows:
        yield row, Place(0, y, COLUMNS, ROW_HEIGHT)
        y += ROW_HEIGHT
        x = height = 0
        for panel in row.panels:
            if panel.width > COLUMNS:
                raise ValueError(f"{panel.title}: wider than {COLUMNS} columns")
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            yield panel, Place(x, y, panel.width, panel.height)
            x, height = x + panel.width, max(height, panel.height)
        y += height
