"""Parity of the page's numbers with the server's, in headless Chromium: `python -m benchmarks.page_parity build/demo`.

The folder is that of `make demo`: bundles, runs and corpus. Each answer of the page is compared with that of a server
for the same file: logits, decision, and fused map. Where the raw maps of a window differ by more than the tolerance,
each side is compared with the ReLU-boundary references of its own features (docs/decisions/0002): valid maps that
differ from each other only in units whose input is zero but for rounding.
"""

import argparse
import base64
import functools
import http.server
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

from benchmarks.environment import environment
from speakerlens.export.boundary import BoundaryReferences
from speakerlens.export.page import write_page
from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import load_corpus

UTTERANCES = 30
TOLERANCE = 1e-4
NEAR = 1e-5  # to a reference: no other is tried
NOISE_DB = 5.0  # of every second utterance
RATE = 16_000
STAGES = ("s1", "s2", "s3", "s4")
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
SERVER_FLAGS = ("--port=0", "--metrics-port=0", "--probe-seconds=0", "--threads=1", "--log-level=warning")
# Runs in the page: the page's own modules, with the outputs of every window recorded.
ASK = """async ([file, wanted]) => {
  const { decode } = await import("/audio.mjs");
  const { start } = await import("/engine.mjs");
  const { Detector, Network } = await import("/network.mjs");
  const { cut } = await import("/windows.mjs");
  const bytes = (values) => btoa(Array.from(new Uint8Array(Float32Array.from(values).buffer),
    (each) => String.fromCharCode(each)).join(""));
  globalThis.loaded ??= (async () => {
    const settings = await (await fetch("/models.json")).json();
    const engine = await start(wanted);
    const networks = [];
    for (const model of settings.models) networks.push(await Network.load(model, engine));
    return { settings, networks, detector: await Detector.load(settings.detector, engine) };
  })();
  const { settings, networks, detector } = await globalThis.loaded;
  const samples = await decode(await (await fetch(file)).arrayBuffer());
  const speech = [];
  for (const window of cut(samples, settings.models[0].windows)) {
    speech.push(await detector.holdsSpeech(window.samples));
  }
  const answers = [];
  for (const network of networks) {
    const windows = new Map();
    const session = network.session;
    network.session = { run: async (inputs) => {
      const found = await session.run(inputs);
      const raw = Object.fromEntries(Object.entries(found).filter(([name]) => /features|saliency/.test(name))
        .map(([name, value]) => [name, [value.dims.slice(1), bytes(value.data)]]));
      const place = cut(samples, network.model.windows).findIndex((each) =>
        each.samples.length === inputs.audio.data.length && each.samples.every((v, i) => v === inputs.audio.data[i]));
      windows.set(place, { ...raw, start: cut(samples, network.model.windows)[place].start,
        target: Number(found.explained.data[0]) });
      return found;
    } };
    const answer = await network.explain(samples, speech);
    network.session = session;
    answers.push({ variant: answer.variant, best: answer.best, explained: answer.explained, known: answer.known,
      logits: answer.logits, speech, fused: bytes(answer.maps.fused), shape: [answer.rows, answer.frames],
      windows: [...windows.values()] });
  }
  return answers;
}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print or write one JSON object; return 1 where a difference is not explained."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_parity", description=__doc__)
    parser.add_argument("demo", type=Path, help="folder of `make demo`")
    parser.add_argument("--runtime", type=Path, metavar="DIR", help="files of onnxruntime-web (default: npm)")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        write_page(arguments.demo / "bundles", site, arguments.runtime)
        files = write_recordings(arguments.demo / "corpus", site, arguments.utterances)
        with served(site) as address, browser() as opened, server(arguments.demo / "bundles") as stub:
            page = opened.new_page()
            page.goto(f"{address}/models.json")
            compared = []
            for name, content in files.items():
                for answer in page.evaluate(ASK, [f"/{name}", None]):
                    compared.append(compare(answer, name, content, stub, arguments.demo / "runs"))
                    print(json.dumps(compared[-1]), file=sys.stderr)
            version = opened.version
    record = {**environment(), "chromium": version, **summary(compared), "answers": compared}
    text = json.dumps(record, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return int(record["unexplained"] > 0)


def write_recordings(corpus: Path, site: Path, count: int) -> dict[str, bytes]:
    """Write test utterances as WAV of 16 bits, one speaker after the other; return their content by name."""
    generator = np.random.default_rng(0)
    clips: dict[str, Any] = {}
    for clip in load_corpus(corpus).utterances("test"):
        clips.setdefault(str(clip.speaker), clip)
    files = {}
    for number, (speaker, clip) in enumerate(sorted(clips.items())[:count]):
        samples = np.asarray(read_audio(clip.path, clip.start, clip.duration), np.float64)
        if number % 2:
            noise = generator.normal(size=len(samples))
            samples = samples + noise * np.sqrt(np.mean(samples**2) / 10 ** (NOISE_DB / 10))
            samples /= max(1.0, float(np.abs(samples).max()))
        files[f"{speaker}.wav"] = encoded(samples)
        (site / f"{speaker}.wav").write_bytes(files[f"{speaker}.wav"])
    return files


def encoded(samples: NDArray[Any], subtype: str = "PCM_16") -> bytes:
    """Return samples as a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype=subtype)
    return buffer.getvalue()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Yield the address of a file server of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()


@contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """Yield a headless Chromium."""
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=shutil.which("chromium"), args=[*CHROMIUM_FLAGS, *flags])
        yield launched
        launched.close()


@contextmanager
def server(bundles: Path) -> Iterator[SpeakerIdentificationStub]:
    """Yield the calls of a server of its own."""
    window = f"--window-seconds={WINDOW_SECONDS:g}"
    command = [sys.executable, "-m", "serving", "--bundles", str(bundles), window, *SERVER_FLAGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield SpeakerIdentificationStub(grpc.insecure_channel(json.loads(process.stdout.readline())["grpc"]))
        finally:
            process.terminate()


def compare(
    answer: Mapping[str, Any], name: str, content: bytes, stub: SpeakerIdentificationStub, runs: Path
) -> dict[str, Any]:
    """Return the differences of one answer of the page from the server's."""
    [expected] = ask(
        stub, content, answer["variant"], pb.ExplainOptions(stages=[pb.STAGE_FUSED]), len(answer["logits"])
    )
    logits = np.array([score.logit for score in expected.speakers])
    [saliency] = expected.explanation.saliency
    fused = np.frombuffer(saliency.values, "<f4").reshape(saliency.rows, saliency.columns)
    found: dict[str, Any] = {
        "file": name,
        "variant": answer["variant"],
        "windows": len(answer["windows"]),
        "logits": relative_error(np.sort(answer["logits"])[::-1], logits),
        "same_decision": answer["known"] == expected.known,
        "fused_map": relative_error(array(answer["shape"], answer["fused"]), fused),
    }
    beyond, page_nearest, server_nearest = 0, 0.0, 0.0
    samples = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    for window in answer["windows"]:
        piece = samples[window["start"] :][: round(WINDOW_SECONDS * RATE)]
        here = [array(*window[name]) for name in ("features", *(f"saliency_{stage}" for stage in STAGES))]
        there = server_maps(stub, piece, answer["variant"], expected.explanation.target_speaker)
        if max(map(relative_error, here[1:], there[1:])) <= TOLERANCE:
            continue
        beyond += 1
        page_nearest = max(page_nearest, nearest(runs / answer["variant"], here, len(piece), window["target"]))
        server_nearest = max(server_nearest, nearest(runs / answer["variant"], there, len(piece), window["target"]))
    if beyond:
        found |= {"windows_beyond": beyond, "page_to_reference": page_nearest, "server_to_reference": server_nearest}
    return found


def ask(
    stub: SpeakerIdentificationStub, content: bytes, variant: str, explain: pb.ExplainOptions, speakers: int
) -> Sequence[Any]:
    """Return the server's answers for a file, with the best `speakers` speakers."""
    models = [pb.ModelSelector(variant=variant)]
    request = pb.IdentifyRequest(audio=pb.Audio(encoded=content), explain=explain, models=models, top_k=speakers)
    return stub.Identify(request).answers


def server_maps(
    stub: SpeakerIdentificationStub, samples: NDArray[np.float32], variant: str, speaker: str
) -> list[NDArray[np.float32]]:
    """Return features and raw maps of one window, as the server's graph has them."""
    stages = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4]
    explain = pb.ExplainOptions(stages=stages, resolution=pb.RESOLUTION_NATIVE, target_speaker=speaker)
    [answer] = ask(stub, encoded(samples, "FLOAT"), variant, explain, 1)
    planes = [answer.explanation.log_mel, *answer.explanation.saliency]
    return [np.frombuffer(each.values, "<f4").reshape(each.rows, each.columns) for each in planes]


@functools.cache
def references(run: Path) -> BoundaryReferences:
    """Return the references of a trained network."""
    return BoundaryReferences(load_run(run).network)


def nearest(run: Path, found: Sequence[NDArray[np.float32]], samples: int, target: int) -> float:
    """Return the largest error over the stages to the first reference that is near enough, else to the nearest."""
    features, *maps = found
    least = np.inf
    for each in references(run).maps(features, samples, target):
        least = min(least, max(map(relative_error, maps, each)))
        if least <= NEAR:
            break
    return float(least)


def array(shape: Sequence[int], text: str) -> NDArray[np.float32]:
    """Return a matrix from the base64 of its values."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape)


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def summary(compared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the record begins with."""
    beyond = [each for each in compared if "windows_beyond" in each]
    sides = ("page_to_reference", "server_to_reference")
    maps = [each["fused_map"] for each in compared]
    return {
        "tolerance": TOLERANCE,
        "answers_compared": len(compared),
        "largest_error_of_logits": max(each["logits"] for each in compared),
        "other_decisions": sum(not each["same_decision"] for each in compared),
        "error_of_fused_maps": {"median": statistics.median(maps), "largest": max(maps)},
        "fused_maps_within": sum(each <= TOLERANCE for each in maps),
        "windows": sum(each["windows"] for each in compared),
        "windows_beyond": sum(each["windows_beyond"] for each in beyond),
        "largest_error_to_a_reference": {side: max((each[side] for each in beyond), default=0.0) for side in sides},
        "unexplained": sum(each[side] > TOLERANCE for each in beyond for side in sides),
    }


if __name__ == "__main__":
    sys.exit(main())
