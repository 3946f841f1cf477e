"""Signals: SIGTERM ends a process whose disk hangs, SIGHUP reloads."""

import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import trustme

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving import toy
from tests.serving.certificates import channel, issue
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.rpc.test_tokens import ALICE, BOB, bearer, write
from tests.serving.test_lifecycle import slow_request

# Runs the rest of the command line in a process whose disk stops answering at the given call of a function.
DEAD_DISK = """
import sys, time
from speakerlens.serving import server
from speakerlens.serving.models import repository
from speakerlens.serving.__main__ import main

calls, last = 0, int(sys.argv[1])
real = repository.list_bundles

def dead(root):
    global calls
    calls += 1
    if calls >= last:
        print("the disk is dead", file=sys.stderr, flush=True)
        time.sleep(1000)
    return real(root)

repository.list_bundles = dead
sys.exit(main(sys.argv[5:]))
"""


@pytest.mark.parametrize("calls", [1, 2, 3], ids=["at the start", "while loading", "under the watch"])
def test_sigterm_ends_a_server_whose_disk_hangs(toy_bundles: Path, calls: int) -> None:
    within = (sys.executable, "-c", DEAD_DISK, str(calls))
    with ServerProcess(toy_bundles, "--watch=0.1", wait=calls > 2, within=within) as server:
        server.wait_for_log("the disk is dead", CALL_SECONDS)
        if calls > 2:
            assert server.identify(pb.IdentifyRequest(audio=raw(voice(1.0)))).answers
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8
        assert "ending although these threads still wait: disk_" in server.log


def test_sighup_reloads_tokens_certificates_and_bundles(tmp_path: Path) -> None:
    """Without --watch; the process lives on, and a call in progress is answered."""
    bundles = tmp_path / "bundles"
    toy.write_bundle(bundles, "v", 1)
    toy.write_bundle(bundles, "w", 1)
    tokens = write(tmp_path, f"alice:{ALICE}")
    authority = trustme.CA()
    pair = issue(tmp_path / "tls", authority)
    flags = (f"--tokens={tokens}", f"--tls-certificate={pair.certificate}", f"--tls-key={pair.key}")
    with ServerProcess(bundles, *flags) as server, channel(server.ready["grpc"], authority.cert_pem.bytes()) as secure:
        stub = SpeakerIdentificationStub(secure)
        slow = stub.Identify.future(slow_request(variant="v"), metadata=bearer(ALICE), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        write(tmp_path, f"alice:{ALICE}", f"bob:{BOB}")
        issue(tmp_path / "tls", authority)
        toy.write_bundle(bundles, "v", 2)
        shutil.rmtree(bundles / "w")
        server.process.send_signal(signal.SIGHUP)
        for line in ("SIGHUP: reading", "reloaded the tokens", "reloaded the TLS files", "loaded v/2", "unloading w/1"):
            server.wait_for_log(line)
        models = stub.ListModels(pb.ListModelsRequest(), metadata=bearer(BOB), timeout=CALL_SECONDS).models
        assert [(model.variant, model.version) for model in models] == [("v", 1), ("v", 2)]
        assert slow.result().answers
