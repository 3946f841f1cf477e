"""How many of the project's files, functions and lines one request runs through.

    python -m benchmarks.request_files
    python -m benchmarks.request_files --bundles build/demo/bundles --json

Starts the server in this process, on a toy bundle or on those given, and answers two Identify requests of one window,
without and with saliency maps. Every thread is profiled (`sys.setprofile`). Generated protobuf code, imports, the test
client and this file are not counted; lines are those of whole files. The path is what runs until the client has the
answer, except the threads that measure in the background; files that only these reach, or that run later, are listed
separately.
"""

import argparse
import asyncio
import io
import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grpc

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from speakerlens.serving.config import Config
from speakerlens.serving.server import Server
from tests.serving import toy
from tests.serving.harness import raw, talk

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("serving", "measures", "speakerlens", "protos")
BACKGROUND_THREADS = ("measuring",)
WARM_UP = 5
QUIET_SECONDS = 0.5
START_SECONDS = 60.0


@cache
def source_of(code: CodeType) -> Path | None:
    """Return the project's file, relative to the root, that a function is written in; None for all other code."""
    if code.co_name == "<module>" or not code.co_filename.endswith(".py"):
        return None
    file = Path(code.co_filename).resolve()
    if not file.is_relative_to(ROOT) or file.stem.endswith(("_pb2", "_pb2_grpc")):
        return None
    relative = file.relative_to(ROOT)
    return relative if relative.parts[0] in PARTS else None


@dataclass
class Profile:
    """The functions called while `active`, in the answer's path and in the background.

    Attributes:
        answered: whether the client has its answer; what is called from then on is background.
    """

    active: bool = False
    answered: bool = False
    path: set[CodeType] = field(default_factory=set)
    background: set[CodeType] = field(default_factory=set)

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Record a call; the hook for `sys.setprofile`."""
        if not self.active or event != "call" or source_of(frame.f_code) is None:
            return
        beside = self.answered or threading.current_thread().name.startswith(BACKGROUND_THREADS)
        (self.background if beside else self.path).add(frame.f_code)


def figures(codes: Iterable[CodeType]) -> dict[str, Any]:
    """Return the number of files, functions and lines of these functions' files, and the functions of each file."""
    functions: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for code in codes:
        functions[str(source_of(code))].add((code.co_qualname, code.co_firstlineno))
    return {
        "files": len(functions),
        "functions": sum(map(len, functions.values())),
        "lines": sum(len((ROOT / name).read_text("utf-8").splitlines()) for name in functions),
        "by_file": {name: sorted({each for each, _ in functions[name]}) for name in sorted(functions)},
    }


async def traced(stub: Any, request: pb.IdentifyRequest, profile: Profile) -> dict[str, Any]:
    """Send one request and return the figures of all it ran, of its own path, and of what ran beside it only."""
    profile.path.clear()
    profile.background.clear()
    profile.active, profile.answered = True, False
    await stub.Identify(request)
    profile.answered = True
    await asyncio.sleep(QUIET_SECONDS)
    profile.active = False
    files = {source_of(code) for code in profile.path}
    only = {code for code in profile.background if source_of(code) not in files}
    return {
        "all": figures(profile.path | profile.background),
        "path": figures(profile.path),
        "background_only": figures(only),
    }


async def measure(bundles: Path, profile: Profile) -> dict[str, Any]:
    """Serve the bundles and return the figures of an Identify request without and with maps."""
    output = io.StringIO()
    config = Config(bundles=bundles, port=0, metrics_port=0, probe_seconds=0.0, device="cpu")
    server = Server(config, "", lambda facts: output.write(json.dumps(facts) + "\n"))
    await server.listen()
    working = asyncio.create_task(server.work(asyncio.Event()))
    async with asyncio.timeout(START_SECONDS):
        while not output.getvalue().endswith("\n"):
            await asyncio.wait({working}, timeout=0.01)
            if working.done():
                working.result()
    address = json.loads(output.getvalue())["grpc"]
    plain = pb.IdentifyRequest(audio=raw(talk(2.0)))
    explained = pb.IdentifyRequest(audio=raw(talk(2.0)), explain=pb.ExplainOptions())
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = SpeakerIdentificationStub(channel)
            for request in (plain, explained) * WARM_UP:
                await stub.Identify(request)
            await asyncio.sleep(QUIET_SECONDS)
            return {
                "identify": await traced(stub, plain, profile),
                "identify_with_maps": await traced(stub, explained, profile),
            }
    finally:
        working.cancel()
        await server.drain()


def report(found: dict[str, Any]) -> None:
    """Print the figures and the files."""
    for name, parts in found.items():
        for part, each in parts.items():
            print(
                f"{name:20} {part:16} {each['files']:3} files {each['functions']:4} functions {each['lines']:6} lines"
            )
    for name, parts in found.items():
        for part in ("path", "background_only"):
            print(f"\n{name}, {part.replace('_', ' ')}:")
            for file, functions in parts[part]["by_file"].items():
                print(f"  {file} ({len(functions)})")


def main() -> None:
    """Trace the requests and print what they ran through."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundles", type=Path, help="folder of bundles; a toy bundle by default")
    parser.add_argument("--json", action="store_true", help="print JSON, with the functions of each file")
    arguments = parser.parse_args()
    profile = Profile()
    # Before any thread starts, or the threads that are there are not seen.
    threading.setprofile(profile)
    sys.setprofile(profile)
    with tempfile.TemporaryDirectory() as folder:
        bundles = arguments.bundles
        if bundles is None:
            bundles = Path(folder)
            toy.write_bundle(bundles, "act-da", 1, 3)
        found = asyncio.run(measure(bundles, profile))
    sys.setprofile(None)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        report(found)


if __name__ == "__main__":
    main()
