"""The Prometheus of tests and drill: it scrapes, evaluates rules and answers queries."""

from pathlib import Path

import prometheus_client
import pytest

from deploy.prometheus_api import QueryError
from deploy.prometheus_process import PrometheusProcess
from tests.deploy.prometheus import needs_prometheus

pytestmark = needs_prometheus


def test_process_scrapes_and_evaluates(tmp_path: Path) -> None:
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("height_metres", "Of a tree.", ("tree",), registry=registry).labels("oak").set(20)
    page, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=registry)
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: trees, rules: [{record: height:twice, expr: 2 * height_metres}]}]", "utf-8")
    with PrometheusProcess(tmp_path, [f"127.0.0.1:{page.server_port}"], [rules], interval=0.5) as prometheus:
        prometheus.wait_for(lambda: prometheus.query("height:twice"), 30)
        (series,) = prometheus.query("height:twice")
        assert series.labels["tree"] == "oak"
        assert series.values == [40]
        end = float(series.times[0])
        (again,) = prometheus.query_range("max(height_metres)", end - 1, end, 0.5)
        assert list(again.values)[-1] == 20
        assert prometheus.query("no_such_metric") == []
        assert prometheus.query("1 + 1")[0].values == [2]
        assert "height_metres" in prometheus.metrics()
        with pytest.raises(QueryError, match="parse error"):
            prometheus.query("height_metres{")
    page.shutdown()
    page.server_close()
    thread.join(5)


def test_failed_start_is_explained(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: broken, rules: [{record: x, expr: 'sum('}]}]", "utf-8")
    with pytest.raises(RuntimeError, match="parse error"):
        PrometheusProcess(tmp_path, [], [rules])
