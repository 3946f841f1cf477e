"""Compare the processor time of a call over HTTP and over gRPC: `python -m benchmarks.http_cost BUNDLES [--rounds N]`.

It is that of all threads of the server, and the calls alternate between the protocols. Decoding and a network run in
every call, so that the difference is the cost of HTTP.
"""

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import httpx
import numpy as np
import soundfile

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub

SECONDS = 3.0
CALLS = 10
FLAGS = ("--port=0", "--http-port=0", "--metrics-port=0", "--probe-seconds=0", "--threads=1", "--log-level=warning")


def cpu_seconds(process: int) -> float:
    """Return the processor time of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def calls(address: str, url: str, variant: str) -> dict[str, Callable[[], object]]:
    """Return the calls to compare, by name."""
    samples = (0.1 * np.random.default_rng(0).normal(size=round(16_000 * SECONDS))).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="PCM_16")
    content = buffer.getvalue()
    stub = SpeakerIdentificationStub(grpc.insecure_channel(address))
    client = httpx.Client(base_url=url, trust_env=False, timeout=60)
    models = [{"variant": variant}]
    text = json.dumps({"models": models, "audio": {"encoded": base64.b64encode(content).decode()}}).encode()
    explain = {"stages": ["STAGE_FUSED"], "encoding": "ENCODING_UINT8"}
    explained = json.dumps({"models": models, "explain": explain})
    request = pb.IdentifyRequest(audio=pb.Audio(encoded=content), models=[pb.ModelSelector(variant=variant)])
    with_maps = pb.IdentifyRequest()
    with_maps.CopyFrom(request)
    with_maps.explain.stages.append(pb.STAGE_FUSED)
    with_maps.explain.encoding = pb.ENCODING_UINT8

    def post(**options: object) -> object:
        answer = client.post("/v1/identify", **options)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer

    return {
        "gRPC": lambda: stub.Identify(request),
        "HTTP, JSON": lambda: post(content=text, headers={"content-type": "application/json"}),
        "HTTP, form": lambda: post(files={"audio": content}, data={"request": json.dumps({"models": models})}),
        "gRPC, with a map": lambda: stub.Identify(with_maps),
        "HTTP, form, with a map": lambda: post(files={"audio": content}, data={"request": explained}),
        "gRPC, models": lambda: stub.ListModels(pb.ListModelsRequest()),
        "HTTP, models": lambda: client.get("/v1/models").raise_for_status(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_cost", description=__doc__)
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--variant", default="da")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args(argv)
    command = [sys.executable, "-m", "serving", "--bundles", str(arguments.bundles), *FLAGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            compared = calls(ready["grpc"], ready["http"], arguments.variant)
            taken: dict[str, list[float]] = {name: [] for name in compared}
            for number in range(arguments.rounds + 1):
                for name, call in compared.items():
                    before = cpu_seconds(server.pid)
                    for _ in range(CALLS):
                        call()
                    if number:  # the first round warms up
                        taken[name].append((cpu_seconds(server.pid) - before) / CALLS * 1000)
        finally:
            server.terminate()
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in taken.items()}
    print(
        json.dumps(
            {
                "unit": "ms of the server's processor time a call",
                "audio_seconds": SECONDS,
                "rounds": arguments.rounds,
                "calls": CALLS,
                "median": {name: round(of[1], 3) for name, of in quartiles.items()},
                "quartiles": {name: [round(of[0], 3), round(of[2], 3)] for name, of in quartiles.items()},
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
