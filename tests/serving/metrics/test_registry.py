"""The page: what a client writes never becomes a label, and exemplars are safe and bounded."""

import math
import re
import urllib.request
from pathlib import Path

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.metrics.registry import Page
from tests.serving.api.requests import infer, message, padded
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk

MARK = "zq9"
# Labels, value and time.
EXEMPLAR = re.compile(r'\{request_id="([^"\\]+)"\} [0-9.e+-]+ [0-9.]+')
PROPER_ID = f"{MARK}-" + "a" * 60
# Fit for a header and a log, and as unfit as that allows for a label: 64 characters.
HOSTILE_ID = (f'{MARK}"}}1\\n#HELP{{x="' + "\\" * 64)[:64]


def openmetrics(server: ServerProcess) -> str:
    request = urllib.request.Request(  # noqa: S310
        server.ready["metrics"], headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=CALL_SECONDS) as page:  # noqa: S310
        assert page.headers["Content-Type"].startswith("application/openmetrics-text")
        return str(page.read().decode())


def exemplars(text: str) -> dict[str, set[str]]:
    """Ids by the name of the sample."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        sample, mark, exemplar = line.partition(" # ")
        if mark and not line.startswith("#"):
            read = EXEMPLAR.fullmatch(exemplar)
            assert read, line
            found.setdefault(sample.partition("{")[0], set()).add(read[1])
    return found


def attack(server: ServerProcess) -> None:
    """Writes hostile text wherever a client can write any."""
    text = f'{MARK}"}} 1\n# EOF\n'
    stub, audio = server.stub, raw(talk(1.0))
    model = pb.ModelSelector(variant=text)
    headers = (("x-request-id", HOSTILE_ID), ("user-agent", MARK), (f"x-{MARK}", MARK))

    def refused(call: object, *arguments: object) -> None:
        with pytest.raises(grpc.RpcError):
            call(*arguments, timeout=CALL_SECONDS, metadata=headers)  # type: ignore[operator]

    stub.Identify(pb.IdentifyRequest(audio=audio), timeout=CALL_SECONDS, metadata=headers)
    long_id = (("x-request-id", f"{MARK}-long-" + "x" * 100),)
    stub.Identify(pb.IdentifyRequest(audio=audio), timeout=CALL_SECONDS, metadata=long_id)
    refused(stub.Identify, pb.IdentifyRequest(audio=audio, models=[model]))
    refused(stub.Identify, pb.IdentifyRequest(audio=audio, explain=pb.ExplainOptions(target_speaker=text)))
    refused(stub.Identify, pb.IdentifyRequest(audio=pb.Audio(encoded=text.encode())))
    stub.IdentifyBatch(
        pb.IdentifyBatchRequest(requests=[pb.IdentifyRequest(audio=audio, models=[model])]), timeout=CALL_SECONDS
    )
    refused(stub.GetModel, pb.GetModelRequest(model=model))
    refused(stub.Verify, pb.VerifyRequest(audio=audio, enrolled_speaker=MARK, model=pb.ModelSelector(variant="da")))
    stub.Enroll(pb.EnrollRequest(speaker=MARK, utterances=[audio]), timeout=CALL_SECONDS)
    stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=MARK), timeout=CALL_SECONDS)
    refused(stub.RemoveSpeaker, pb.RemoveSpeakerRequest(speaker=text))
    request = message(padded([talk(1.0)]), "probabilities", model="da")
    request.id = text
    infer(server, request)
    for spoiled in (message(padded([talk(1.0)]), text), message(padded([talk(1.0)]), model=text)):
        with pytest.raises(grpc.RpcError):
            infer(server, spoiled)
    for path in (f"/{MARK}.{MARK}/{MARK}", f"/speakerlens.v1.SpeakerIdentification/{MARK}"):
        refused(server.channel.unary_unary(path), b"")


def test_client_strings_never_become_labels(toy_bundles: Path, tmp_path: Path) -> None:
    with ServerProcess(toy_bundles, f"--speakers={tmp_path / 'speakers.db'}") as server:
        attack(server)
        server.wait_for_metric("speakerlens_input_duration_seconds_count", 4)
        assert MARK not in server.metrics_text()
        assert MARK not in openmetrics(server)
        before = set(server.metrics())
        attack(server)
        # Whatever clients send: the same requests again add no series.
        assert set(server.metrics()) - before == set()


def test_exemplars_hold_ids_that_are_safe_and_bounded(toy_bundles: Path, tmp_path: Path) -> None:
    with ServerProcess(toy_bundles, f"--speakers={tmp_path / 'speakers.db'}", "--metric-exemplars") as server:
        attack(server)
        proper = pb.IdentifyRequest(audio=raw(talk(2.5)))  # of a length of its own, so that its exemplar is the last
        server.stub.Identify(proper, timeout=CALL_SECONDS, metadata=(("x-request-id", PROPER_ID),))
        server.wait_for_metric("speakerlens_input_duration_seconds_count", 5)
        assert MARK not in server.metrics_text(), "the classic format has no exemplars"
        text = openmetrics(server)
        families = {family.name for family in parsed(text)}  # type: ignore[no-untyped-call]
        assert "speakerlens_input_snr_decibels" in families, "a strict parser reads it"
        found = exemplars(text)
        ids = set().union(*found.values())
        assert all(len("request_id") + len(each) <= 128 for each in ids)
        assert {each for each in ids if MARK in each} == {PROPER_ID}
        for line in text.splitlines():
            assert MARK not in line.partition(" # ")[0]
        assert found.keys() >= {
            f"speakerlens_{name}_bucket"
            for name in (
                "request_duration_seconds",
                "phase_duration_seconds",
                "input_snr_decibels",
                "prediction_margin",
            )
        }


def test_nan_is_not_observed() -> None:
    page = Page()
    histogram = page.histogram("x", "About x.", (1.0, 2.0))
    page.observe(histogram, math.nan)
    page.observe(histogram, 1.5, "id")
    value = page.registry.get_sample_value
    assert value("speakerlens_x_count") == 1
    assert value("speakerlens_x_sum") == 1.5
    assert value("speakerlens_x_created") is None


def test_exemplars_are_kept_only_where_they_are_wanted() -> None:
    for wanted in (True, False):
        page = Page(exemplars=wanted)
        histogram = page.histogram("x", "About x.", (1.0,))
        page.observe(histogram, 0.5)
        page.observe(histogram, 0.5, "some-id")
        [kept] = [sample.exemplar for each in histogram.collect() for sample in each.samples if sample.value == 2][:1]
        assert (kept is not None) == wanted
