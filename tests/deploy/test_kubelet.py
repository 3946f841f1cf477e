"""The Deployment of deploy/kustomize/base under a stand-in of the kubelet: a pod is deleted under load."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speakerlens import ClientError, SpeakerClient, StreamOptions
from speakerlens.serving import config as serving_config
from tests.conftest import ROOT
from tests.deploy.kubelet import Pod
from tests.deploy.manifests import base, with_component
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, voice

MANIFESTS = base()
DEPLOYMENT = MANIFESTS["Deployment/speakerlens"]
WITH_HTTP = with_component("http")["Deployment/speakerlens"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(SERVER,) = POD["containers"]
SCALE = 0.2
RATE = 16_000


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CALL_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def options() -> serving_config.Config:
    return serving_config.parse(SERVER["args"], {})


def test_arguments_fit_the_manifest() -> None:
    config = options()
    assert {"grpc": config.port, "metrics": config.metrics_port} == {
        each["name"]: each["containerPort"] for each in SERVER["ports"]
    }
    assert str(config.bundles) in {each["mountPath"] for each in SERVER["volumeMounts"] if each.get("readOnly")}
    assert config.lame_duck_seconds > 0
    stopping = SERVER["lifecycle"]["preStop"]["sleep"]["seconds"] + config.lame_duck_seconds + config.drain_seconds
    assert stopping + 5 <= POD["terminationGracePeriodSeconds"]
    # Readiness fails, and is noticed, before the first call is refused.
    readiness = SERVER["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= config.lame_duck_seconds
    limit = SERVER["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert int(limit[:-2]) * 2**20 >= 4 * config.max_held_bytes + 2**29, "decisions/0034: four bytes for one"


def test_pod_has_no_more_rights_than_it_needs() -> None:
    context = SERVER["securityContext"]
    assert context["readOnlyRootFilesystem"] is context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text("utf-8")
    assert POD["automountServiceAccountToken"] is POD["enableServiceLinks"] is False


def test_services_and_policies_select_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    ports = {each["name"] for each in SERVER["ports"]}
    for name in ("speakerlens", "speakerlens-headless"):
        service = MANIFESTS[f"Service/{name}"]["spec"]
        assert service["selector"].items() <= labels
        assert {each["targetPort"] for each in service["ports"]} <= ports
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = MANIFESTS[f"{kind}/speakerlens"]["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"].items() <= labels
    opened = {
        port["port"] for rule in MANIFESTS["NetworkPolicy/speakerlens"]["spec"]["ingress"] for port in rule["ports"]
    }
    assert opened == {each["containerPort"] for each in SERVER["ports"]}


def models_over_http(pod: Pod) -> list[str]:
    with urllib.request.urlopen(f"http://{pod.http}/v1/models", timeout=CALL_SECONDS) as answer:
        return [each["variant"] for each in json.load(answer)["models"]]


def test_pod_that_is_deleted_under_load_loses_nothing(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path / "bundles", "v", 1)
    (tmp_path / "tmp").mkdir()
    mounts = {"/bundles": tmp_path / "bundles", "/tmp": tmp_path / "tmp"}  # noqa: S108
    pods = [Pod(WITH_HTTP, mounts, SCALE) for _ in range(2)]
    over, failed, answered = threading.Event(), list[str](), list[int]()
    samples = voice(1.0)
    silent = threading.Event()

    def identify(client: SpeakerClient) -> None:
        while not over.wait(0.02):
            try:
                client.identify(samples, rate=RATE)
            except ClientError as error:
                failed.append(str(error))
            else:
                answered.append(1)

    def speak(client: SpeakerClient) -> None:
        """Live audio that is in progress when the pod is deleted, and ends while it drains."""

        def chunks() -> Any:
            yield samples
            silent.wait(CALL_SECONDS)
            yield samples

        try:
            whole = list(client.identify_stream(chunks(), StreamOptions(RATE)))[-1]
        except ClientError as error:
            failed.append(str(error))
        else:
            assert whole is not None

    try:
        until(lambda: all(pod.ready for pod in pods))
        assert models_over_http(pods[0]) == ["v"]
        with SpeakerClient([pod.address for pod in pods]) as client, SpeakerClient(pods[0].address) as one:
            threads = [threading.Thread(target=identify, args=(client,), daemon=True) for _ in range(4)]
            threads.append(threading.Thread(target=speak, args=(one,), daemon=True))
            for thread in threads:
                thread.start()
            until(lambda: len(answered) > 20)
            threading.Timer(1.0, silent.set).start()
            assert pods[0].delete() == 0
            before = len(answered)
            until(lambda: len(answered) > before + 20)
            over.set()
            for thread in threads:
                thread.join(CALL_SECONDS)
            assert not any(thread.is_alive() for thread in threads)
    finally:
        for pod in pods:
            pod.close()
    assert failed == []
    assert pods[0].events == ["started", "ready", "not ready", "SIGTERM"]
    assert pods[1].events == ["started", "ready"]
    for line in pods[0].output:
        json.loads(line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "tmp"]
