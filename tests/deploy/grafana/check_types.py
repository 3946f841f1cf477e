"""Write a TypeScript program that compiles only if the dashboards match Grafana's own types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

RAW = "./node_modules/@grafana/schema/dist/esm/raw"
MODULES = {
    "dashboard": "dashboard/x/dashboard_types.gen",
    "stat": "composable/stat/panelcfg/x/StatPanelCfg_types.gen",
    "lines": "composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "heatmap": "composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen",
    "table": "composable/table/panelcfg/x/TablePanelCfg_types.gen",
}
HELPERS = """
// JSON has strings where the types have enumerations.
type Json<T> = T extends string ? `${T}` : T extends boolean ? T : T extends number ? number
  : T extends (infer U)[] ? Json<U>[] : T extends object ? {[K in keyof T]: Json<T[K]>} : T;
type Field<Custom> = {
  defaults: Json<Omit<dashboard.FieldConfig, 'custom'>> & {custom: Json<Custom>},
  overrides: Json<dashboard.FieldConfigSource['overrides']>,
};
type Panel<Options, Custom> = Json<Omit<dashboard.Panel, 'options' | 'fieldConfig' | 'targets' | 'datasource'>>
  & {datasource: dashboard.DataSourceRef, targets: unknown[], options: Json<Options>, fieldConfig: Field<Custom>};
"""
PANELS = {
    "stat": "Panel<Partial<stat.Options>, {}>",
    "timeseries": "Panel<Partial<lines.Options>, Partial<lines.FieldConfig>>",
    "heatmap": "Panel<Partial<heatmap.Options>, Partial<heatmap.FieldConfig>>",
    "table": "Panel<Partial<table.Options>, Partial<table.FieldConfig>>",
    "row": "Json<dashboard.RowPanel>",
}
# Grafana writes and reads these, but the types do not have them.
UNTYPED = {"definition", "target", "titleFormat", "tagKeys"}


def program(dashboards: Mapping[str, Any]) -> str:
    """Return the program: a constant for each part of each dashboard (by the name of its file)."""
    imports = [f"import * as {name} from '{RAW}/{path}';" for name, path in MODULES.items()]
    return "\n".join(
        [*imports, HELPERS, *(line for stem, content in dashboards.items() for line in _lines(stem, content))]
    )


def _lines(stem: str, content: Mapping[str, Any]) -> Iterator[str]:
    parts = {key: value for key, value in content.items() if key not in ("panels", "templating", "annotations")}
    typed = [("Json<dashboard.Dashboard>", parts)]
    typed += [("Json<dashboard.VariableModel>", each) for each in content["templating"]["list"]]
    typed += [("Json<dashboard.AnnotationQuery>", each) for each in content["annotations"]["list"]]
    typed += [(PANELS[each["type"]], each) for each in content["panels"]]
    for number, (name, value) in enumerate(typed):
        kept = {key: part for key, part in value.items() if key not in UNTYPED}
        yield f"export const {stem}_{number}: {name} = {json.dumps(kept)};"
