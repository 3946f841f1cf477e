"""The Helm chart, rendered with many values: valid for Kubernetes, and accepted by the server.

Fetches its tools, into the folder CHART_TOOLS if that is set, where they are found again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from speakerlens.serving import config as serving_config
from tests.conftest import ROOT
from tests.deploy.manifests import with_component
from tests.sharing import made_once

pytestmark = [pytest.mark.slow, pytest.mark.process]

CHART = ROOT / "deploy" / "chart"
KUBERNETES = "1.37"
CUSTOM = ("keda.sh", "monitoring.coreos.com", "gateway.networking.k8s.io")
FULL: dict[str, Any] = {
    "tls": {"secretName": "tls", "clientCa": True},
    "tokens": {"secretName": "tokens"},
    "speakers": {"address": "postgresql://speakerlens@db/speakerlens", "passwordSecretName": "database"},
    "autoscaling": {"kind": "keda"},
    "http": {"enabled": True},
    "gateway": {
        "enabled": True,
        "parentRefs": [{"name": "public"}],
        "hostnames": ["speakers.example.org"],
        "httpHostnames": ["page.example.org"],
    },
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboards": True, "labels": {"release": "p"}},
    "kserve": {"enabled": True},
    "server": {"traceEndpoint": "http://otel:4317", "extraArgs": ["--shadow-share=0.1"]},
    "networkPolicy": {"egress": [{"ports": [{"protocol": "TCP", "port": 9000}]}]},
    "podLabels": {"team": "voice"},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"disk": "ssd"},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccountName": "speakerlens",
}
FETCHED = {
    "bundles": {"source": "fetch", "fetch": {"sources": [f"s3://models/da/3#sha256={'0' * 64}"], "secretName": "s3"}}
}
GATEWAY = "gateway.enabled=true,gateway.parentRefs[0].name=public"
IMAGE = {"bundles": {"source": "image", "image": "registry.example.org/bundles:7"}, "autoscaling": {"kind": "hpa"}}
# Files of values of the chart, and further values.
VALUES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "default": ((), {}),
    "full": ((), FULL),
    "fetched": ((), FETCHED),
    "image": ((), IMAGE),
    "gpu": (("values-gpu.yaml",), {}),
    "long name": ((), {"replicas": 1, "preStopSeconds": 0, "podDisruptionBudget": {"enabled": False}}),
}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    def fetch(folder: Path) -> None:
        command = [str(CHART / "fetch.sh"), str(folder), sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        (folder / "failure").write_text("" if done.returncode == 0 else done.stderr[-2000:] or "no reason given")

    kept = os.environ.get("CHART_TOOLS")
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        fetch(Path(kept))
    folder = Path(kept) if kept else made_once(tmp_path_factory, worker_id, "kubernetes-tools", fetch)
    failure = (folder / "failure").read_text()
    if failure:
        pytest.skip(f"helm and the others cannot be fetched: {failure}")
    return folder


def template(tools: Path, *flags: str, name: str = "speakerlens") -> "subprocess.CompletedProcess[str]":
    command = [str(tools / "helm"), "template", name, str(CHART), "--namespace", "speakerlens", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module", params=VALUES)
def rendered(
    request: pytest.FixtureRequest, tools: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Any]]:
    files, values = VALUES[request.param]
    file = tmp_path_factory.mktemp("values") / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    name = "s" * 53 if request.param == "long name" else "speakerlens"
    flags = [f"--values={each}" for each in (*(CHART / other for other in files), file)]
    done = template(tools, *flags, name=name)
    assert done.returncode == 0, done.stderr
    yield [each for each in yaml.safe_load_all(done.stdout) if each]


def group(resource: dict[str, Any]) -> str:
    return str(resource["apiVersion"]).rpartition("/")[0]


def test_resources_are_valid(rendered: list[Any], tools: Path, tmp_path: Path) -> None:
    core = [each for each in rendered if group(each) not in (*CUSTOM, "serving.kserve.io")]
    assert core
    (tmp_path / "core.yaml").write_text(yaml.safe_dump_all(core))
    validate = [
        str(tools / "venv" / "bin" / "kubernetes-validate"),
        "--strict",
        "-k",
        KUBERNETES,
        str(tmp_path / "core.yaml"),
    ]
    done = subprocess.run(validate, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    custom = [each for each in rendered if group(each) in CUSTOM]
    check = ["node", str(ROOT / "tests" / "deploy" / "check_resources.mjs"), str(tools)]
    done = subprocess.run(check, input=json.dumps(custom), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is valid") == len(custom)


def containers(rendered: list[Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return every container of a server with its pod."""
    found = []
    for resource in rendered:
        if resource["kind"] in ("Deployment", "ServingRuntime"):
            spec = resource["spec"]
            pod = spec["template"]["spec"] if resource["kind"] == "Deployment" else spec
            found += [(container, pod) for container in pod["containers"]]
    return found


def test_server_accepts_its_arguments(rendered: list[Any]) -> None:
    for container, pod in containers(rendered):
        config = serving_config.parse(container["args"], {})
        mounted = tuple(each["mountPath"] for each in container["volumeMounts"])
        # KServe mounts the models itself.
        mounted += ("/mnt/models",) if container["name"] == "kserve-container" else ()
        for path in (config.bundles, config.tls_certificate, config.tls_key, config.tls_client_ca, config.tokens):
            assert path is None or str(path).startswith(mounted), path
        assert {each["name"] for each in container["volumeMounts"]} <= {each["name"] for each in pod["volumes"]}
        assert {config.port, config.metrics_port, config.http_port} >= {
            each["containerPort"] for each in container["ports"]
        }
        assert (config.http_port is not None) == any(each["name"] == "http" for each in container["ports"])
        if config.tls_certificate is not None:
            assert "grpc" not in container["readinessProbe"], "the kubelet knows no TLS"


def test_pods_have_no_more_rights_than_they_need(rendered: list[Any]) -> None:
    (deployment,) = [each for each in rendered if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    for container in [*pod["containers"], *pod.get("initContainers", ()), *(each for each, _ in containers(rendered))]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsUser"] == 10001
        assert "memory" in container["resources"]["limits"]


def test_base_is_the_charts_default(tools: Path) -> None:
    base = ROOT / "deploy" / "kustomize" / "base"
    committed = list(yaml.safe_load_all((base / "speakerlens.yaml").read_text("utf-8")))
    assert committed == list(yaml.safe_load_all(template(tools).stdout)), "run deploy/kustomize/render.sh"
    build = [str(tools / "venv" / "bin" / "kubectl"), "kustomize", str(base)]
    done = subprocess.run(
        build, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HOME": str(tools)}
    )
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(done.stdout))) == len(committed)


def test_component_of_http_is_the_charts(tools: Path, tmp_path: Path) -> None:
    """With kubectl; the namespace is what kustomize adds."""
    folder = ROOT / "deploy" / "kustomize"
    parts = {
        "resources": [os.path.relpath(folder / "base", tmp_path)],
        "components": [os.path.relpath(folder / "components" / "http", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    build = [str(tools / "venv" / "bin" / "kubectl"), "kustomize", "--load-restrictor=LoadRestrictionsNone"]
    done = subprocess.run([*build, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = yaml.safe_load_all(template(tools, "--set", "http.enabled=true").stdout)
    built = yaml.safe_load_all(done.stdout)
    assert sorted(map(json.dumps, map(_sorted, built))) == sorted(map(json.dumps, map(_sorted, wanted)))
    assert {each["kind"]: each for each in yaml.safe_load_all(done.stdout)} == {
        each["kind"]: each for each in with_component("http").values()
    }


def _sorted(part: Any) -> Any:
    """Return mappings in the order of their keys, and lists of mappings in one order, too."""
    if isinstance(part, dict):
        return {name: _sorted(part[name]) for name in sorted(part)}
    if isinstance(part, list):
        return [_sorted(each) for each in part]
    return part


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ("servr.drainSeconds=1", "servr"),
        ("server.drainSeconds=fast", "drainSeconds"),
        ("autoscaling.kind=hpaa", "kind"),
        ("bundles.source=image", "bundles.image must name it"),
        ("bundles.source=fetch", "must name at least one bundle"),
        ("gateway.enabled=true", "must name a Gateway"),
        (f"{GATEWAY},gateway.httpHostnames={{a}}", "http.enabled must be true"),
        (f"{GATEWAY},http.enabled=true,gateway.httpHostnames={{a}}", "must name others"),
        (
            f"{GATEWAY},http.enabled=true,gateway.httpHostnames={{a}},gateway.hostnames={{a}}",
            "a is in gateway.hostnames",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(tools: Path, values: str, sentence: str) -> None:
    done = template(tools, "--set", values)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_chart_has_no_fault_that_helm_finds(tools: Path) -> None:
    done = subprocess.run(
        [str(tools / "helm"), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
