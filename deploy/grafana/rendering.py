"""A dashboard as the JSON that Grafana reads (schema version 41, Grafana 11.6 and later)."""

import json
from typing import Any

from deploy.grafana.expressions import FIRING
from deploy.grafana.model import Colour, Dashboard, Kind, Panel, Place, Query, Row, Variable, layout
from speakerlens import palette

SCHEMA_VERSION = 41
# The data source is a variable, so that a dashboard can be imported into a Grafana that has other sources.
SOURCE = {"type": "prometheus", "uid": "${source}"}
TAG = "speakerlens"
SCHEME = "Viridis"  # of heatmaps: perceptually even

Json = dict[str, Any]


def render(dashboard: Dashboard) -> str:
    """Return the JSON text of a dashboard's file."""
    return json.dumps(_dashboard(dashboard), indent=2, ensure_ascii=False) + "\n"


def _dashboard(dashboard: Dashboard) -> Json:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # the crosshair is shared: one moment, seen in all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "fiscalYearStartMonth": 0,
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "links": [
            {
                "type": "dashboards",
                "title": "speakerlens",
                "tags": [TAG],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": [_source(), *map(_variable, dashboard.variables)]},
        "panels": [
            _row(number, part, place) if isinstance(part, Row) else _panel(number, part, place)
            for number, (part, place) in enumerate(layout(dashboard), start=1)
        ],
    }


def _alerts() -> Json:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": str(Colour.BAD),
        "target": {"refId": "Anno", "expr": FIRING, "interval": "15s"},
        "titleFormat": "{{alertname}}",
        "tagKeys": "severity,variant",
    }


def _source() -> Json:
    return {
        "name": "source",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "options": [],
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.series}, {variable.name})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "variable"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "regex": "",
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _place(place: Place) -> Json:
    return {"x": place.x, "y": place.y, "w": place.width, "h": place.height}


def _row(number: int, row: Row, place: Place) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "gridPos": _place(place),
        "collapsed": False,
        "panels": [],
    }


def _panel(number: int, panel: Panel, place: Place) -> Json:
    made = {
        "id": number,
        "type": str(panel.kind),
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": _place(place),
        "targets": [_target(panel, query, chr(ord("A") + index)) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.kind](panel),
    }
    transformations = _transformations(panel)
    return made | {"transformations": transformations} if transformations else made


def _target(panel: Panel, query: Query, name: str) -> Json:
    formats = {Kind.TABLE: "table", Kind.HEATMAP: "heatmap"}
    return {
        "refId": name,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expression,
        "legendFormat": query.legend,
        "format": formats.get(panel.kind, "time_series"),
        "instant": panel.instant,
        "range": not panel.instant,
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"value": each.value, "color": str(each.colour)} for each in panel.thresholds]
    defaults: Json = {
        "unit": str(panel.unit),
        "color": {"mode": "thresholds" if panel.kind in (Kind.NUMBER, Kind.TABLE) else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": str(panel.floor)}, *steps]},
        "custom": _CUSTOM[panel.kind](panel),
    }
    low, high = panel.limits
    return defaults | ({} if low is None else {"min": low}) | ({} if high is None else {"max": high})


def _lines_custom(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
        "axisSoftMin": 0,
    }


def _table_custom(panel: Panel) -> Json:
    # The length of a bar shows the state, so that colour is not needed.
    bar = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    return {"align": "auto", "cellOptions": bar if panel.thresholds else {"type": "auto"}}


def _overrides(panel: Panel) -> list[Json]:
    if panel.kind is not Kind.LINES:
        return []
    dashed = {"fill": "dash", "dash": [8, 6]}
    references = [
        {
            "matcher": {"id": "byFrameRefID", "options": chr(ord("A") + index)},
            "properties": [
                {"id": "custom.lineStyle", "value": dashed},
                {"id": "custom.fillOpacity", "value": 0},
                {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
            ],
        }
        for index, query in enumerate(panel.queries)
        if query.reference
    ]
    coloured = [
        {
            "matcher": {"id": "byRegexp", "options": f"/^{variant}(,.*)?$/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": look.colour}}],
        }
        for variant, look in palette.LOOKS.items()
        if any(query.legend == "{{variant}}" for query in panel.queries)
    ]
    return references + coloured


def _lines_options(_: Panel) -> Json:
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _number_options(panel: Panel) -> Json:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "colorMode": "background_solid" if panel.thresholds else "none",
        "graphMode": "none" if panel.instant else "area",
        "justifyMode": "auto",
        "textMode": "value_and_name" if any("{{" in query.legend for query in panel.queries) else "value",
        "wideLayout": True,
    }


def _heatmap_options(panel: Panel) -> Json:
    return {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": SCHEME,
            "steps": 64,
            "exponent": 0.5,
            "scale": "exponential",
            "fill": "dark-orange",
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": str(panel.unit)},
    }


def _table_options(_: Panel) -> Json:
    return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "countRows": False}}


def _transformations(panel: Panel) -> list[Json]:
    """From Prometheus' table (Time, a column for each label, Value) to the one that is shown."""
    if panel.matrix:
        rows, columns = panel.matrix.rows, panel.matrix.columns
        matrix = {
            "columnField": columns,
            "rowField": rows,
            "valueField": "Value",
            "emptyValue": "null",
        }
        # The first column's title would be "rows\columns".
        first = f"{rows}\\{columns}"
        order = {name: place for place, name in enumerate((first, *(palette.LOOKS if columns == "variant" else ())))}
        # Sorting keeps the order of equals, and a matrix that of first appearance: rows and columns come out sorted.
        return [
            *({"id": "sortBy", "options": {"fields": {}, "sort": [{"field": field}]}} for field in (rows, columns)),
            {"id": "groupingToMatrix", "options": matrix},
            {"id": "organize", "options": {"excludeByName": {}, "indexByName": order, "renameByName": {first: rows}}},
        ]
    if panel.columns:
        order = {name: place for place, name in enumerate(panel.columns)}
        return [
            {"id": "filterFieldsByName", "options": {"include": {"names": list(panel.columns)}}},
            {"id": "organize", "options": {"excludeByName": {}, "indexByName": order, "renameByName": {}}},
        ]
    return []


_OPTIONS = {
    Kind.LINES: _lines_options,
    Kind.NUMBER: _number_options,
    Kind.HEATMAP: _heatmap_options,
    Kind.TABLE: _table_options,
}
_CUSTOM = {
    Kind.LINES: _lines_custom,
    Kind.NUMBER: lambda _: {},
    Kind.HEATMAP: lambda _: {"scaleDistribution": {"type": "linear"}},
    Kind.TABLE: _table_custom,
}
