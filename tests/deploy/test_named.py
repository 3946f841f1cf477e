"""Every flag, variable, command, port, page and metric that chart, compose, dashboards and docs name is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from speakerlens.balancing import REPEATABLE
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.identification import SERVICE
from speakerlens.serving.config import Config, parse
from speakerlens.serving.metrics.http import LIVE, READY, HealthPages
from speakerlens.serving.metrics.registry import Page
from tests.conftest import ROOT
from tests.deploy import naming
from tests.deploy.manifests import base, with_component

# As text: the server's messages of this protocol cannot be loaded beside those of Triton's client, as in other tests.
INFERENCE = "inference.GRPCInferenceService"

CHART = ROOT / "deploy" / "chart"


def unknown(
    pattern: re.Pattern[str], known: set[str], files: list[Path] | None = None, *, code: bool = False
) -> list[str]:
    found = naming.named(pattern, naming.FILES if files is None else files, code=code)
    assert found, "the pattern finds nothing: the test shows nothing"
    return sorted(f"{place}: {name}" for name, place in found.items() if name not in known)


def test_flags_are_known() -> None:
    foreign = set().union(*naming.FOREIGN_FLAGS.values())
    assert unknown(naming.FLAG, naming.own_flags() | foreign) == []


def test_flags_of_the_chart_are_the_servers() -> None:
    """With the one of `bundles fetch`, and those of helm in comments."""
    files = [CHART / "templates" / "_helpers.tpl", CHART / "templates" / "deployment.yaml", CHART / "values.yaml"]
    assert unknown(naming.FLAG, naming.server_flags() | {"out"}, files) == []


def test_variables_are_known() -> None:
    assert unknown(naming.VARIABLE, naming.variables()) == []


def test_commands_are_known() -> None:
    assert unknown(naming.COMMAND, naming.commands(), code=True) == []


def test_ports_are_the_servers() -> None:
    known = naming.ports() | set(naming.FOREIGN_PORTS) | naming.EXAMPLE_PORTS
    assert unknown(naming.PORT, set(map(str, known))) == []


def opened(deployment: dict[str, Any]) -> tuple[Config, dict[str, int]]:
    """Return what the server of a Deployment makes of its arguments, and the ports that the manifest names."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return parse(container["args"], {}), {each["name"]: each["containerPort"] for each in container["ports"]}


def test_http_port_is_off_by_default() -> None:
    assert yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))["http"] == {"enabled": False}
    config, ports = opened(base()["Deployment/speakerlens"])
    assert config.http_port is None
    assert ports == {"grpc": config.port, "metrics": config.metrics_port}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))["services"]["server"]
    assert parse(compose["command"], compose.get("environment", {})).http_port is None


def test_http_port_is_the_same_wherever_it_is_opened() -> None:
    resources = with_component("http")
    config, ports = opened(resources["Deployment/speakerlens"])
    assert config.http_port in naming.ports()
    assert ports == {"grpc": config.port, "metrics": config.metrics_port, "http": config.http_port}
    (service,) = [each for each in resources["Service/speakerlens"]["spec"]["ports"] if each["name"] == "http"]
    assert (service["port"], service["targetPort"]) == (config.http_port, "http")
    ingress = resources["NetworkPolicy/speakerlens"]["spec"]["ingress"]
    calls, monitoring = [{each["port"] for each in rule["ports"]} for rule in ingress]
    assert calls == {config.port, config.http_port}, "who may call may call over HTTP"
    assert monitoring == {config.metrics_port}
    compose = yaml.safe_load((ROOT / "deploy" / "compose.http.yaml").read_text("utf-8"))["services"]["server"]
    port = parse([], compose["environment"]).http_port
    assert compose["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert port == config.http_port
    texts = [(CHART / "templates" / f"{name}.yaml").read_text("utf-8") for name in ("deployment", "service", "gateway")]
    assert all(f"{port}" in text for text in texts)


def test_metrics_are_known() -> None:
    assert unknown(naming.METRIC, naming.metrics(), naming.DEPLOYED) == []
    assert unknown(naming.METRIC, naming.metrics(), naming.DOCUMENTS) == []


def test_recorded_series_have_a_rule() -> None:
    assert unknown(naming.RECORDED, naming.recorded()) == []


def page(path: str, ready: bool) -> tuple[str, bytes]:
    statuses: list[str] = []
    pages = HealthPages(lambda: ready, Page().application())
    body = b"".join(
        pages({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda status, headers: statuses.append(status))
    )
    return statuses[0], body


def test_pages_of_probes_and_checks_are_served() -> None:
    """The metrics port answers everything else with the metrics, so a wrong path would look right."""
    known = {LIVE, READY, "/metrics"}
    patched = "/spec/"  # a place in a manifest, of a patch
    files = [file for file in naming.DEPLOYED if file.suffix in (".yaml", ".cfg", ".conf")]
    found = naming.named(re.compile(r"(?:GET |path: |httpGet: \{path: )(/[\w/]*)"), files)
    assert {LIVE, READY, "/metrics"} <= set(found)
    assert (
        sorted(
            f"{place}: {path}" for path, place in found.items() if path not in known and not path.startswith(patched)
        )
        == []
    )
    assert page(READY, ready=True) == ("200 OK", b"ok\n")
    assert page(READY, ready=False)[0].startswith("503")
    assert page(LIVE, ready=False) == ("200 OK", b"ok\n")


def test_services_of_the_route_are_the_servers() -> None:
    text = (CHART / "templates" / "gateway.yaml").read_text("utf-8")
    (listed,) = re.findall(r"range list (.*?) }}", text)
    assert set(re.findall(r'"([^"]+)"', listed)) == {SERVICE, INFERENCE, "grpc.health.v1.Health"}


def test_envoy_repeats_what_the_client_repeats() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "balancing" / "envoy.yaml").read_text("utf-8"))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    pattern = re.compile(routes[0]["match"]["safe_regex"]["regex"])
    methods = pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].methods
    repeated = {method.name for method in methods if pattern.fullmatch(f"/{SERVICE}/{method.name}")}
    assert repeated == set(REPEATABLE)
    rest = routes[1]["route"]["retry_policy"]["retry_on"].split(",")
    assert set(rest) == {"connect-failure", "refused-stream"}, "what the server has not looked at"


def test_values_have_a_schema_and_are_used() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text("utf-8"))
    templates = "".join(file.read_text("utf-8") for file in (CHART / "templates").iterdir())

    def walk(part: dict[str, object], about: dict[str, dict[str, object]], path: str) -> None:
        assert set(part) == set(about) - {"global"}, path
        for name, value in part.items():
            inner = about[name].get("properties")
            if isinstance(value, dict) and isinstance(inner, dict):
                assert about[name]["additionalProperties"] is False, name
                walk(value, inner, f"{path}.{name}")
            else:
                assert f".Values{path}.{name}" in templates, f"{path}.{name} is not used"

    walk(values, schema["properties"], "")


@pytest.mark.parametrize("name", ["alerts.yml", "recording.yml", "robustness.json", "service.json"])
def test_chart_has_the_rules_and_dashboards_themselves(name: str) -> None:
    folder = "prometheus" if name.endswith(".yml") else "grafana/dashboards"
    assert (CHART / "files" / name).resolve() == ROOT / "deploy" / folder / name
