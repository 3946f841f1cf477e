"""The page of the bundles: what is written, what is refused, and its numbers in a real browser against the server's."""

import functools
import http.server
import io
import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speakerlens.export import page
from speakerlens.export.cli import main
from speakerlens.measures.windows import WINDOW_SECONDS
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.browser import CHROMIUM, needs_chromium
from tests.serving.harness import ServerProcess, plane

BROWSER_SECONDS = 180
# Files whose samples the page reads as the server does, bit for bit.
KINDS = {
    "8.wav": "PCM_U8",
    "16.wav": "PCM_16",
    "24.wav": "PCM_24",
    "32.wav": "PCM_32",
    "float.wav": "FLOAT",
    "16.flac": "PCM_16",
}
# Drives the page in a frame, and asks the network's module directly for the numbers.
HARNESS = """<!doctype html>
<iframe id="page" src="index.html#interference=siren&snr=0&engine=WebGPU" width="1200" height="900"></iframe>
<script type="module">
import { decode, masked } from "./audio.mjs";
import { start } from "./engine.mjs";
import { Detector, Network } from "./network.mjs";
import { cut } from "./windows.mjs";
const report = (name, value) => fetch(`/report/${name}`, { method: "POST", body: JSON.stringify(value) });
addEventListener("unhandledrejection", (event) => report("error", String(event.reason)));
try {
  const settings = await (await fetch("models.json")).json();
  const engine = await start();
  const detector = await Detector.load(settings.detector, engine);
  for (const file of await (await fetch("sounds.json")).json()) {
    const samples = await decode(await (await fetch(file)).arrayBuffer());
    const speech = [];
    for (const window of cut(samples, settings.models[0].windows)) {
      speech.push(await detector.holdsSpeech(window.samples));
    }
    for (const model of settings.models) {
      const answer = await (await Network.load(model, engine)).explain(samples, speech);
      await report("answer", { ...answer, file, speech, fused: Array.from(answer.maps.fused), maps: undefined,
        features: undefined });
    }
  }
  for (const file of await (await fetch("kinds.json")).json()) {
    await report("decoded", [file, Array.from(await decode(await (await fetch(file)).arrayBuffer()))]);
  }
  const tones = Float32Array.from({ length: 32_000 }, (_, index) =>
    Math.sin(2 * Math.PI * 500 * index / 16_000) + Math.sin(2 * Math.PI * 4_000 * index / 16_000));
  const [model, frames] = [settings.models[0], 198];
  const low = Float32Array.from({ length: model.mel_centres_hz.length * frames }, (_, bin) =>
    model.mel_centres_hz[Math.floor(bin / frames)] < 1_500 && bin % frames < frames / 2);
  await report("kept", Array.from(masked(tones, low, frames, model)));
  const inner = document.getElementById("page").contentDocument;
  const status = () => inner.getElementById("status").textContent;
  const settled = async (wanted) => {
    while (!wanted(status())) await new Promise((resolve) => setTimeout(resolve, 50));
    return status();
  };
  const first = await settled((text) => text.includes(";"));
  inner.getElementById("interference").value = "none";
  inner.getElementById("interference").dispatchEvent(new Event("change"));
  const second = await settled((text) => text.includes(";") && text !== first);
  const hosts = performance.getEntriesByType("resource").map((entry) => new URL(entry.name).host);
  const drawn = [...inner.querySelectorAll("canvas")].map((canvas) => new Set(
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size);
  const unnamed = [...inner.querySelectorAll("input, select, button, canvas")].filter((part) =>
    !part.labels?.length && !part.textContent.trim() && !part.ariaLabel).map((part) => part.outerHTML);
  const where = inner.getElementById("where").textContent;
  await report("page", { first, second, where, hosts, drawn, unnamed });
} catch (error) {
  await report("error", `${error} ${error.stack}`);
}
</script>"""


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of stand-ins for the runtime's files, with their digests as the expected ones."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in page.RUNTIME:
        (folder / name).write_text(name)
    monkeypatch.setattr(page, "RUNTIME", {name: page._digest(folder / name) for name in page.RUNTIME})
    return folder


def test_page_has_every_variant_and_its_own_files(bundles: Path, runtime: Path, tmp_path: Path) -> None:
    out = tmp_path / "live"
    for _ in range(2):
        assert main(["page", str(bundles), "--out", str(out), "--runtime", str(runtime)]) == 0
    settings = json.loads((out / "models.json").read_text())
    assert [model["variant"] for model in settings["models"]] == ["clean", "act-da"]
    for model in settings["models"]:
        assert (out / model["graph"]).read_bytes() == (bundles / model["variant"] / "1" / "explain.onnx").read_bytes()
    assert all((out / example["file"]).is_file() for example in settings["examples"])
    own = [file for file in out.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in own) < 300_000
    assert not [file.name for file in own if "http://" in file.read_text() or "https://" in file.read_text()]


def test_folder_without_bundles_is_refused(runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["page", str(tmp_path), "--out", str(tmp_path / "live"), "--runtime", str(runtime)]) == 2
    assert "holds no bundles that name speakers" in capsys.readouterr().err


def test_another_runtime_is_refused(
    bundles: Path, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(runtime.iterdir()).write_text("something else")
    assert main(["page", str(bundles), "--out", str(tmp_path / "live"), "--runtime", str(runtime)]) == 2
    assert f"missing, or not that of {page.PACKAGE}" in capsys.readouterr().err


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the page, and takes what it reports."""

    found: "queue.Queue[tuple[str, Any]]"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.found.put((self.path.rpartition("/")[2], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def windowed(bundles: Path) -> Iterator[ServerProcess]:
    """Yield a server with the default length of windows, which the page has too."""
    with ServerProcess(bundles, f"--window-seconds={WINDOW_SECONDS:g}") as process:
        yield process


@pytest.fixture(scope="module")
def reports(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """Return what the browser reports of short, long and noisy recordings, and of the page."""
    out = tmp_path_factory.mktemp("page")
    assert main(["page", str(bundles), "--out", str(out)]) == 0
    (out / "harness.html").write_text(HARNESS, encoding="utf-8")
    for name, samples in recordings(bundles).items():
        soundfile.write(out / name, samples, 16_000, subtype="PCM_16")
    sound = recordings(bundles)["short.wav"][:4_000]
    for name, subtype in KINDS.items():
        soundfile.write(out / name, sound, 16_000, subtype=subtype)
    (out / "kinds.json").write_text(json.dumps(list(KINDS)), encoding="utf-8")
    (out / "sounds.json").write_text(json.dumps(list(recordings(bundles))), encoding="utf-8")
    handler = functools.partial(_Handler, directory=str(out))
    _Handler.found = queue.Queue()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking".split()
        profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
        address = f"http://127.0.0.1:{files.server_port}/harness.html"
        browser = subprocess.Popen([str(CHROMIUM), *flags, profile, address], stderr=subprocess.DEVNULL)
        found: dict[str, list[Any]] = {"answer": [], "decoded": [], "kept": [], "page": []}
        try:
            while not found["page"]:
                name, value = _Handler.found.get(timeout=BROWSER_SECONDS)
                assert name != "error", value
                if name == "decoded":
                    value.append(soundfile.read(out / value[0])[0])
                found[name].append(value)
        finally:
            browser.kill()
            browser.wait()
            files.shutdown()
        yield found


def recordings(bundles: Path) -> dict[str, NDArray[np.float64]]:
    """Return recordings of one window and of several, with a pause and with noise, at 16 kHz."""
    utterances = [soundfile.read(each)[0] for each in sorted((bundles / "clean" / "1" / "utterances").iterdir())[:4]]
    noise = 0.02 * np.random.default_rng(0).normal(size=len(utterances[1]))
    pause = np.concatenate([utterances[2], np.zeros(60_000), utterances[3]])
    return {"short.wav": utterances[0][:30_000], "noisy.wav": utterances[1] + noise, "pause.wav": pause}


@pytest.mark.slow
@needs_chromium
def test_numbers_equal_the_server_s(reports: dict[str, list[Any]], bundles: Path, windowed: ServerProcess) -> None:
    assert len(reports["answer"]) == 2 * len(recordings(bundles))
    errors = []
    for found in reports["answer"]:
        samples = recordings(bundles)[found["file"]]
        content = pb.Audio(encoded=encoded(samples))
        explain = pb.ExplainOptions(stages=[pb.STAGE_FUSED])
        models = [pb.ModelSelector(variant=found["variant"])]
        answer = windowed.identify(pb.IdentifyRequest(audio=content, explain=explain, models=models, top_k=8)).answers[
            0
        ]
        logits = np.array([score.logit for score in answer.speakers])
        assert _relative_error(np.array(sorted(found["logits"], reverse=True)), logits) < 1e-4
        assert found["known"] == answer.known
        [saliency] = answer.explanation.saliency
        expected = plane(saliency)
        errors.append(_relative_error(np.reshape(found["fused"], expected.shape), expected))
    # Rounding differs in WebAssembly, and turns the gradient of single ReLUs on or off (docs/decisions/0074-page.md).
    assert max(errors) < 5e-3
    assert np.median(errors) < 1e-3


@pytest.mark.slow
@needs_chromium
def test_samples_are_read_as_the_server_reads_them(reports: dict[str, list[Any]]) -> None:
    assert len(reports["decoded"]) == len(KINDS)
    for name, samples, expected in reports["decoded"]:
        np.testing.assert_array_equal(samples, expected.astype(np.float32), err_msg=name)


def _relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def encoded(samples: NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


@pytest.mark.slow
@needs_chromium
def test_kept_sound_lies_where_the_map_is(reports: dict[str, list[Any]]) -> None:
    """Tones of 500 Hz and 4 kHz, of which a map has the low one in the first second."""
    kept = np.array(reports["kept"][0])
    low, high = (np.sin(2 * np.pi * hertz * np.arange(len(kept)) / 16_000) for hertz in (500, 4_000))
    first, second = slice(1_000, 15_000), slice(17_000, 31_000)
    np.testing.assert_allclose(kept[first], low[first], atol=0.02)
    assert abs(kept[first] @ high[first]) < 0.001 * (high[first] @ high[first])
    assert np.abs(kept[second]).max() < 0.001


@pytest.mark.slow
@needs_chromium
def test_page_answers_draws_and_asks_no_other_host(reports: dict[str, list[Any]]) -> None:
    [found] = reports["page"]
    assert all(variant in found["first"] for variant in ("clean: ", "act-da: "))
    assert found["first"] != found["second"], "without interference the answers are others"
    assert "in this page by WebAssembly." in found["where"], "there is no GPU"
    assert len(set(found["hosts"])) == 1
    assert all(colours > 50 for colours in found["drawn"])
    assert found["unnamed"] == []
