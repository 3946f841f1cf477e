"""deploy/compose.yaml, checked without a container engine: all that it names exists and fits together."""

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.traffic.__main__ import parser
from deploy.traffic.scenario import parse
from speakerlens.serving import config as serving_config
from tests.conftest import ROOT

FOLDER = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PORTS = {"server": 8000, "prometheus": 9090, "grafana": 3000}


def mounts(service: str) -> dict[str, str]:
    """Return the mounted paths by their place in the container; all must be read-only."""
    found = {}
    for text in SERVICES[service].get("volumes", ()):
        source, target, *mode = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text).split(":")
        if source not in COMPOSE["volumes"]:
            assert mode == ["ro"], text
            found[target] = source
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_mounted_paths_exist(service: str) -> None:
    for source in mounts(service).values():
        path = (FOLDER / source).resolve()
        assert path.exists() or path.is_relative_to(ROOT / "build"), source


def test_ports_are_local_and_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert re.fullmatch(r"speakerlens:cpu|[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert f"AS {SERVICES['server']['build']['target']}\n" in dockerfile
    assert (FOLDER / SERVICES["server"]["build"]["context"]).resolve() == ROOT


def test_commands_are_accepted_by_the_programs() -> None:
    config = serving_config.parse(SERVICES["server"]["command"], {})
    assert config.shadow_share == 1
    options = parser().parse_args(SERVICES["traffic"]["command"])
    assert options.repeat
    assert options.server == "server:50051"
    assert str(options.source) in mounts("traffic")
    # Within two minutes there are noise and clean speech before it.
    scenario = parse(options.scenario)
    assert scenario.at(0)[1] is None
    assert (scenario.at(110)[1] or 99) < 5


def test_traffic_is_importable_where_it_is_mounted() -> None:
    service = SERVICES["traffic"]
    assert service["entrypoint"] == ["python", "-m", "deploy.traffic"]
    (target,) = [target for target, source in mounts("traffic").items() if source == "."]
    assert target == f"{service['environment']['PYTHONPATH']}/deploy"
    assert service["image"] == SERVICES["server"]["image"]


def test_traffic_imports_only_what_the_image_has() -> None:
    there = {"deploy", "speakerlens", "numpy", "soundfile", "soxr", *sys.stdlib_module_names}
    for file in (FOLDER / "traffic").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.partition(".")[0] for name in names} <= there, file


def test_prometheus_finds_its_files_and_the_server() -> None:
    inside = mounts("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (scrape,) = config["scrape_configs"]
    (target_files,) = scrape["file_sd_configs"]
    for name in ["prometheus.yml", *config["rule_files"], *target_files["files"]]:
        assert f"/etc/prometheus/{name}" in inside
    (group,) = yaml.safe_load((FOLDER / inside["/etc/prometheus/targets.yml"]).read_text("utf-8"))
    assert group["targets"] == [f"server:{PORTS['server']}"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    inside, environment = mounts("grafana"), SERVICES["grafana"]["environment"]
    provisioning = FOLDER / inside["/etc/grafana/provisioning"]
    texts = {file.name: file.read_text("utf-8") for file in provisioning.rglob("*.yaml")}
    assert len(texts) == 2
    for variable in re.findall(r"^[^#]*\$(\w+)", "\n".join(texts.values()), re.MULTILINE):
        assert variable in environment
    config = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert environment["PROMETHEUS_SCRAPE_INTERVAL"] == config["global"]["scrape_interval"]
    assert environment["PROMETHEUS_URL"] == f"http://prometheus:{PORTS['prometheus']}"
    (provider,) = [each for text in texts.values() for each in yaml.safe_load(text).get("providers", ())]
    folder = provider["options"]["path"]
    assert folder in inside
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert json.loads((FOLDER / inside[folder] / home.name).read_text("utf-8"))["panels"]


def test_image_is_built_from_what_is_not_ignored() -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()}
    for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.split()[1:]
            assert {source.partition("/")[0] for source in sources} <= kept, line
            assert all(list(ROOT.glob(source)) for source in sources), line
