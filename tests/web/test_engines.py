"""Where the graphs of the static page run: WebGPU, emulated here by the processor, and WebAssembly."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speakerlens.demo import unpack
from speakerlens.export.page import write_page
from tests.browser import CHROMIUM, needs_chromium

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

EMULATED = ("--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
WAIT_MS = 300_000  # the emulation translates hundreds of shaders
SAMPLES = 8_000  # of an example: the shortest that is answered
BOTH = """async (samples) => {
  const { start } = await import("/engine.mjs");
  const { Network } = await import("/network.mjs");
  const { decode } = await import("/audio.mjs");
  const { models, examples } = await (await fetch("/models.json")).json();
  const audio = (await decode(await (await fetch(examples[0].file)).arrayBuffer())).slice(0, samples);
  const found = [];
  for (const wanted of ["WebAssembly", "WebGPU"]) {
    const engine = await start(wanted);
    const answer = await (await Network.load(models[0], engine)).explain(audio, [true]);
    found.push({ name: engine.name, logits: answer.logits, fused: Array.from(answer.maps.fused) });
  }
  const error = (key) => Math.sqrt(
    found[1][key].reduce((sum, value, index) => sum + (value - found[0][key][index]) ** 2, 0) /
    found[0][key].reduce((sum, value) => sum + value ** 2, 0));
  return { names: found.map(({ name }) => name), logits: error("logits"), fused: error("fused") };
}"""
EMULATES = "navigator.gpu && 'Suspending' in WebAssembly && navigator.gpu.requestAdapter().then(Boolean)"
CHOSEN = "async () => (await (await import('/engine.mjs')).start()).name"
pytestmark = [
    pytest.mark.slow,
    needs_chromium,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with one of the demo's models."""
    folder = tmp_path_factory.mktemp("engines")
    bundles = unpack(folder / "bundles")
    for variant in ("clean", "act-da"):
        shutil.rmtree(bundles / variant)
    write_page(bundles, folder / "page")
    return folder / "page"


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Files, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()


@pytest.fixture(scope="module")
def emulating(address: str) -> Iterator[Any]:
    """A browser with an emulated GPU."""
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=list(EMULATED))
        page = launched.new_page()
        page.goto(f"{address}/models.json")
        if not page.evaluate(EMULATES):
            pytest.skip("this Chromium emulates no WebGPU")
        page.close()
        yield launched
        launched.close()


def test_webgpu_gives_the_same_numbers(emulating: Any, address: str) -> None:
    page = emulating.new_page()
    page.goto(f"{address}/models.json")
    found = page.evaluate(BOTH, SAMPLES)
    page.close()
    assert found["names"] == ["WebAssembly", "WebGPU"]
    assert found["logits"] < 1e-4
    assert found["fused"] < 5e-3  # a unit at the boundary of a ReLU may differ (docs/decisions/0085)


def test_emulated_gpu_is_not_chosen(emulating: Any, address: str) -> None:
    page = emulating.new_page()
    page.goto(f"{address}/models.json")
    assert page.evaluate(CHOSEN) == "WebAssembly"
    page.close()


BROKEN = {
    "it cannot be loaded": "throw new Error('no such build');",
    "it opens no graph": """export const env = { wasm: {} };
export const InferenceSession = { create: () => Promise.reject(new Error("lost")) };""",
    "it computes nothing": """export * from "./ort.wasm.bundle.min.mjs";
import * as real from "./ort.wasm.bundle.min.mjs";
const create = (graph, { executionProviders: [name] }) =>
  name === "webgpu"
    ? Promise.resolve({ run: () => Promise.reject(new Error("lost")) })
    : real.InferenceSession.create(graph, { executionProviders: [name] });
export const InferenceSession = { create };""",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_page_answers_by_webassembly_where_webgpu_fails(emulating: Any, address: str, site: Path, fault: str) -> None:
    runtime = site / "runtime" / "ort.jspi.bundle.min.mjs"
    content = runtime.read_bytes()
    runtime.write_text(BROKEN[fault], encoding="utf-8")
    context = emulating.new_context()
    try:
        page = context.new_page()
        page.goto(f"{address}/#engine=WebGPU")
        page.locator("#answers .verdict", has_text="known").wait_for(timeout=WAIT_MS)
        assert "in this page by WebAssembly." in page.locator("#where").inner_text()
    finally:
        context.close()
        runtime.write_bytes(content)
