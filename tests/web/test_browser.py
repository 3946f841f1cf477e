"""The page that a server serves, in a real browser: keyboard, live audio, playback, a token, and accessibility."""

import base64
import io
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
from tests.browser import CHROMIUM, needs_chromium
from tests.serving.harness import ServerProcess
from tests.serving.rpc.test_tokens import ALICE, write

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

AXE = "axe-core@4.14.1"
WAIT_MS = 120_000
SERIOUS = ("serious", "critical")
# Keeps what the page plays, so that a test can read it.
KEEP_SOUNDS = """globalThis.sounds = [];
const address = URL.createObjectURL;
URL.createObjectURL = (blob) => (sounds.push(blob), address.call(URL, blob));"""
LAST_SOUND = "async () => Array.from(new Uint8Array(await sounds.at(-1).arrayBuffer()))"
pytestmark = needs_chromium


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
    page.add_init_script(KEEP_SOUNDS)
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


def test_interference_and_target_change_answers(opened: Any) -> None:
    before = answered(opened)
    opened.locator("#interference").select_option("white noise")
    noisy = answered(opened, other_than=before)
    opened.locator("#snr").fill("-5")
    assert opened.locator("#snr-value").inner_text() == "-5 dB"
    noisier = answered(opened, other_than=noisy)
    assert len({before, noisy, noisier}) == 3
    other = opened.locator("#target option").nth(3).inner_text()
    with opened.expect_response("**/v1/identify") as asked:
        opened.locator("#target").select_option(other)
    assert {each["explanation"]["target_speaker"] for each in asked.value.json()["answers"]} == {other}
    assert answered(opened) == noisier, "another target explains the same answer"
    opened.locator("#stage").select_option("s4")
    opened.get_by_text(f"s4 map: why {other}?").first.wait_for()


def test_played_sound_lies_where_the_map_is(opened: Any) -> None:
    answered(opened)
    with opened.expect_response("**/v1/identify") as asked:
        opened.locator("#interference").select_option("siren")
    answer = next(each for each in asked.value.json()["answers"] if each["variant"] == "clean")
    fused = next(each for each in answer["explanation"]["saliency"] if each["stage"] == "STAGE_FUSED")
    levels = np.frombuffer(base64.b64decode(fused["values"]), np.uint8).reshape(fused["rows"], fused["columns"])
    answered(opened)
    played = {}
    for what in ("all", "kept", "removed"):
        opened.locator(f'[data-play="{what}"]').first.click()
        played[what] = soundfile.read(io.BytesIO(bytes(opened.evaluate(LAST_SOUND))))[0]
    np.testing.assert_allclose(played["kept"] + played["removed"], played["all"], atol=3 / 2**15)
    shares = {what: share_in(levels > 64, fused["frequencies_hz"], sound) for what, sound in played.items()}
    assert shares["removed"] < shares["all"] < shares["kept"]
    assert shares["kept"] > 1.5 * shares["removed"]


def share_in(part: NDArray[np.bool_], centres_hz: list[float], sound: NDArray[np.float64]) -> float:
    """Return the share of a sound's energy that lies in a part of the plane, [mel, frames] of 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames)) ** 2
    rows = np.abs(np.fft.rfftfreq(400, 1 / 16_000)[:, None] - np.asarray(centres_hz)).argmin(axis=1)
    columns = min(len(power), part.shape[1])
    inside = part[rows][:, :columns].T
    return float((power[:columns] * inside).sum() / power[:columns].sum())


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
