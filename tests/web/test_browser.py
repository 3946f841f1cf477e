"""The page at a server's door in a real browser: keyboard, live audio, playback, a token, and accessibility."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speakerlens import page as files
from speakerlens.demo import unpack
from tests.serving.harness import ServerProcess
from tests.serving.rpc.test_tokens import ALICE, write

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = "axe-core@4.14.1"
WAIT_MS = 120_000
SERIOUS = ("serious", "critical")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="chromium or npm is not installed"),
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("demo") / "bundles")


@pytest.fixture(scope="module")
def server(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    tokens = write(tmp_path_factory.mktemp("tokens"), f"alice:{ALICE}")
    flags = ("--window-seconds=3", "--http-port=0", f"--tokens={tokens}")
    with ServerProcess(bundles, *flags, fresh=True) as process:
        yield process


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "pack", AXE], cwd=folder, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture(scope="module")
def browser(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser whose microphone plays 10 s of three voices, again and again."""
    spoken = np.concatenate([utterance(path) for path in sorted((bundles / "da/1/utterances").iterdir())[:3]])
    microphone = tmp_path_factory.mktemp("microphone") / "voices.wav"
    soundfile.write(microphone, spoken, 16_000, subtype="PCM_16")
    flags = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-audio-capture={microphone}"]
        )
        yield launched
        launched.close()


def utterance(path: Path) -> NDArray[np.float64]:
    samples: NDArray[np.float64] = soundfile.read(path)[0]
    return samples


@pytest.fixture
def opened(browser: Any, server: ServerProcess) -> Iterator[Any]:
    """The page, signed in by keyboard alone; everything it asks for is of the server."""
    context = browser.new_context(permissions=["microphone"], viewport={"width": 1400, "height": 900})
    page = context.new_page()
    hosts: set[str] = set()
    errors: list[str] = []
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.ready["http"])
    page.get_by_text("This server asks for a token.").wait_for()
    page.locator("#token").focus()
    page.keyboard.type(ALICE)
    page.keyboard.press("Enter")
    answered(page)
    yield page
    assert errors == []
    assert hosts - {""} == {urlsplit(server.ready["http"]).netloc}
    context.close()


def answered(page: Any, *, other_than: str = "") -> str:
    """The status once every model has answered, and not as before."""
    status = page.locator("#status")
    for _ in range(WAIT_MS // 100):
        text: str = status.inner_text()
        if text.count(";") == 2 and text != other_than:
            return text
        page.wait_for_timeout(100)
    raise AssertionError(f"no answer: {status.inner_text()}")


def test_every_variant_answers_and_is_drawn(opened: Any) -> None:
    text = answered(opened)
    assert [part.partition(":")[0].strip() for part in text.split(";")] == ["clean", "da", "act-da"]
    assert opened.locator("canvas").count() == 3
    picture = opened.locator("canvas").first.screenshot()
    assert len(set(picture)) > 50


def test_the_keyboard_is_enough(opened: Any) -> None:
    before = answered(opened)
    opened.locator("body").press("Tab")
    reached = []
    for _ in range(40):
        reached.append(opened.evaluate("document.activeElement.id || document.activeElement.dataset.play || ''"))
        if reached[-1] == "interference":
            opened.keyboard.press("ArrowDown")
            break
        opened.keyboard.press("Tab")
    assert reached[-1] == "interference", reached
    changed = answered(opened, other_than=before)
    for _ in range(40):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.dataset.play || ''") == "kept":
            break
    opened.keyboard.press("Enter")
    opened.locator('[data-play="kept"][aria-pressed="true"]').wait_for()
    opened.keyboard.press("Enter")
    opened.locator('[data-play="kept"][aria-pressed="false"]').first.wait_for()
    assert changed != before


def test_live_audio_is_answered_while_it_is_recorded(opened: Any) -> None:
    before = answered(opened)
    opened.locator("#record").click()
    opened.get_by_text("Recording: speak").wait_for(timeout=WAIT_MS)
    live = answered(opened, other_than=before)
    assert opened.locator("#record").inner_text() == "Stop recording"
    opened.locator("#record").click()
    opened.get_by_text("your recording, ").wait_for(timeout=WAIT_MS)
    assert answered(opened, other_than=live)


def test_a_file_of_a_phone_is_answered(opened: Any, bundles: Path) -> None:
    before = answered(opened)
    path = sorted((bundles / "da/1/utterances").iterdir())[3]
    opened.locator("#file").set_input_files(path)
    assert path.stem.partition("-")[2] in answered(opened, other_than=before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_nothing_serious(
    browser: Any, server: ServerProcess, axe: str, width: int, scheme: str, tmp_path: Path
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(server.ready["http"])
    page.evaluate("token => sessionStorage.setItem('speakerlens-token', token)", ALICE)
    for path, ready in (("", "#answers .verdict"), ("api.html", "h3")):
        page.goto(server.ready["http"] + path)
        page.locator(ready).first.wait_for(timeout=WAIT_MS)
        if not path:
            answered(page)
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS]
        assert serious == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the window"
        page.screenshot(path=tmp_path / f"{path or 'page'}-{width}-{scheme}.png", full_page=True)
    context.close()


def test_page_is_light() -> None:
    assert sum(len(files.asset(name)) for name in (*files.ASSETS, "api.html", "api.mjs")) < 300_000
    for name in (*files.ASSETS, "api.html", "api.mjs"):
        assert b"http://" not in files.asset(name)
        assert b"https://" not in files.asset(name)
