"""The JSON that Grafana 11 reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deploy.observability.panels import Dashboard, Panel, Row

Json = dict[str, Any]
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
ALL = ".*"
COLUMNS = 24

PROMOTIONS = (
    "max by (policy, version) (winnow_reward_info)\n"
    "unless max by (policy, version) (winnow_reward_info offset 1m)"
)
"""Versions that were not in force a minute ago: shown as annotations."""


def render(dashboard: Dashboard, runbooks: str) -> Json:
    """A dashboard's JSON; links to runbooks begin with `runbooks`."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["winnow"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_promotions()]},
        "templating": {
            "list": [_source(), _choice("policy"), _choice("model"), _constant(runbooks)]
        },
        "links": [
            _link("Winnow", "") | {"type": "dashboards", "tags": ["winnow"], "includeVars": True},
            _link("Runbooks", "${runbooks}/README.md"),
        ],
        "panels": list(_laid_out(dashboard.rows)),
    }


def _laid_out(rows: Sequence[Row]) -> Iterator[Json]:
    """Rows from top to bottom, and the panels of each from left to right."""
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        number, x, y, height = number + 1, 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            height = 4 if panel.kind == "stat" else 8
            place = {"x": x, "y": y, "w": panel.width, "h": height}
            yield _panel(panel, number) | {"gridPos": place}
            number, x = number + 1, x + panel.width
        y += height


def _panel(panel: Panel, number: int) -> Json:
    steps = [{"color": c, "value": v} for c, v in panel.thresholds.items()]
    marked = len(steps) > 1 and panel.kind == "timeseries"
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if steps and not marked else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps or [{"color": "green", "value": None}]},
        "mappings": [_mapping(value, *shown) for value, shown in panel.texts.items()],
        "custom": _drawing(panel.kind, panel.stacked, marked),
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [
            _target(panel.kind, chr(ord("A") + place), legend, expr)
            for place, (legend, expr) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": OPTIONS[panel.kind],
        "links": [],
    }
    if panel.alert:
        made["description"] += f" Runbook: {panel.alert}."
        made["links"] = [_link(f"Runbook: {panel.alert}", f"${{runbooks}}/{panel.alert}.md")]
    if panel.kind == "table":
        made["transformations"] = [
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}
        ]
    return made


OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left"},
    },
    "state-timeline": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "table": {"cellHeight": "sm", "showHeader": True},
}


def _drawing(kind: str, stacked: bool, marked: bool) -> Json:
    if kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if marked else "off"},
    }


def _target(kind: str, ref: str, legend: str, expr: str) -> Json:
    formats = {"heatmap": "heatmap", "table": "table"}
    return {
        "refId": ref,
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "format": formats.get(kind, "time_series"),
        "instant": kind == "table",
        "range": kind != "table",
    }


def _mapping(value: str, text: str, colour: str) -> Json:
    result = {"text": text, "color": colour}
    if value == "nan":
        return {"type": "special", "options": {"match": "nan", "result": result}}
    return {"type": "value", "options": {value: result}}


def _link(title: str, url: str) -> Json:
    return {
        "type": "link",
        "title": title,
        "url": url,
        "tags": [],
        "icon": "doc",
        "tooltip": "",
        "asDropdown": False,
        "includeVars": False,
        "keepTime": True,
        "targetBlank": True,
    }


def _source() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
    }


def _choice(name: str) -> Json:
    """All values that a label has, any of which may be chosen."""
    query = (
        f"label_values({'winnow_reward_info' if name == 'policy' else 'winnow_nfe_total'}, {name})"
    )
    return {
        "type": "query",
        "name": name,
        "label": name.capitalize(),
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ALL,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _constant(runbooks: str) -> Json:
    """Where the runbooks are; hidden."""
    current = {"text": runbooks, "value": runbooks}
    return {
        "type": "constant",
        "name": "runbooks",
        "hide": 2,
        "query": runbooks,
        "current": current,
    }


def _promotions() -> Json:
    return {
        "name": "Policy versions",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": PROMOTIONS,
        "titleFormat": "{{policy}} version {{version}} in force",
        "step": "60s",
    }
