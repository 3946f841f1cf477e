"""What is loaded, kept and refused as the bundles on disk change: without a network, with real engines."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from speakerlens.serving.config import Config
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import StartupError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.folders import list_bundles
from speakerlens.serving.models.loader import build_model, open_engine
from speakerlens.serving.models.registry import Models
from speakerlens.serving.models.repository import Repository
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.robustness.observer import RobustnessObserver
from speakerlens.serving.rpc.health import Health
from tests.serving import toy


class World:
    """A repository whose looks are taken by hand."""

    def __init__(self, root: Path, keep_versions: int) -> None:
        self.root = root
        self.metrics, self.health = Metrics(), Health()
        self.scheduler, self.models = Scheduler("cpu"), Models(self.metrics)
        config = Config(bundles=root, threads=1, keep_versions=keep_versions)
        self.repository = Repository(config, self.models, self.scheduler, self.metrics, self.health)
        self.health.announce()

    def identifier(self, codec: ThreadPoolExecutor, config: Config) -> Pipeline:
        """The core over what is loaded."""
        watcher = RobustnessObserver(config, self.metrics, self.models, self.scheduler)
        return Pipeline(
            self.models, config, self.metrics, codec, watcher, Admission(config.max_in_flight, config.codec_threads)
        )

    async def load(self) -> list[str]:
        await self.repository.load()
        return self.names()

    async def look(self) -> list[str]:
        await self.repository._refresh(list_bundles(self.root), tolerant=True)
        return self.names()

    def names(self) -> list[str]:
        return [model.bundle.name for model in self.models]

    def bundle_health(self, variant: str) -> bool | None:
        return self.health._bundles.get(variant)

    def refused(self) -> dict[tuple[str, str], float]:
        samples = [sample for metric in self.metrics.bundles_refused.collect() for sample in metric.samples]
        return {(each.labels["variant"], each.labels["reason"]): each.value for each in samples if each.value}


def play(root: Path, scenario: Callable[[World], Coroutine[Any, Any, None]], keep_versions: int = 2) -> None:
    async def run() -> None:
        world = World(root, keep_versions)
        try:
            await scenario(world)
        finally:
            await world.models.close()
            world.scheduler.close()

    asyncio.run(run())


def spoil(folder: Path) -> None:
    """Overwrites a graph where it lies, as a careless copy does."""
    (folder / "predict.onnx").write_bytes(b"garbage")


@pytest.mark.parametrize(("keep", "loaded"), [(1, ["u/1", "v/10"]), (2, ["u/1", "v/9", "v/10"])])
def test_the_newest_versions_are_loaded(tmp_path: Path, keep: int, loaded: list[str]) -> None:
    for version in (10, 9, 2):
        toy.write_bundle(tmp_path, "v", version)
    toy.write_bundle(tmp_path, "u", 1)

    async def scenario(world: World) -> None:
        assert await world.load() == loaded
        toy.write_bundle(tmp_path, "v", 11)
        assert (await world.look())[-1] == "v/11"
        assert len(world.names()) == len(loaded)

    play(tmp_path, scenario, keep)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders that may not be listed, as for a server that does not run as root."""
    folders = set[Path]()
    iterdir = Path.iterdir

    def listed(folder: Path) -> Iterator[Path]:
        if folder in folders:
            raise PermissionError(13, "Permission denied", str(folder))
        return iter(list(iterdir(folder)))

    monkeypatch.setattr(Path, "iterdir", listed)
    return folders


def test_folder_that_may_not_be_listed_is_refused(
    tmp_path: Path, forbidden: set[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """At the start and under the watch; the others are loaded, and what is loaded stays."""
    toy.write_bundle(tmp_path, "v", 1)
    toy.write_bundle(tmp_path, "w", 1)
    (tmp_path / "lost+found").mkdir()
    forbidden.add(tmp_path / "lost+found")

    async def scenario(world: World) -> None:
        assert await world.load() == ["v/1", "w/1"]
        assert world.refused() == {("_none", "unreadable"): 1}
        forbidden.add(tmp_path / "w")
        toy.write_bundle(tmp_path, "v", 2)
        for _ in range(3):
            assert await world.look() == ["v/1", "v/2", "w/1"]
        assert world.refused() == {("_none", "unreadable"): 1, ("w", "unreadable"): 1}
        assert (world.bundle_health("v"), world.bundle_health("w")) == (True, False)
        forbidden.clear()
        assert await world.look() == ["v/1", "v/2", "w/1"]
        assert world.refused() == {}

    play(tmp_path, scenario)
    for name in ("lost+found", "w"):
        assert caplog.text.count(f"refused {tmp_path / name}: it cannot be listed: Permission denied") == 1


def test_nothing_that_may_be_listed_is_a_startup_error(tmp_path: Path, forbidden: set[Path]) -> None:
    toy.write_bundle(tmp_path, "v", 1)
    forbidden.add(tmp_path / "v")

    async def scenario(world: World) -> None:
        with pytest.raises(
            StartupError, match=r"no usable bundle, 1 refused: .*it cannot be listed: Permission denied"
        ):
            await world.load()
        forbidden.add(tmp_path)
        with pytest.raises(StartupError, match=f"--bundles {tmp_path}: it cannot be listed: Permission denied"):
            await world.load()

    play(tmp_path, scenario)


def test_an_older_version_replaces_a_refused_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in (1, 2, 3):
        toy.write_bundle(tmp_path, "v", version)
    spoil(tmp_path / "v" / "3")

    async def scenario(world: World) -> None:
        assert await world.load() == ["v/1", "v/2"]
        assert world.refused() == {("v", "digest"): 1}
        assert world.bundle_health("v") is False
        for _ in range(3):
            await world.look()
        assert caplog.text.count("v/3: predict.onnx is not the file") == 1, "it is said once"
        shutil.rmtree(tmp_path / "v" / "3")
        assert await world.look() == ["v/1", "v/2"]
        assert world.refused() == {}
        assert world.bundle_health("v") is True

    play(tmp_path, scenario)


def test_an_incomplete_copy_is_not_refused_while_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """File by file, the manifest first: nothing is refused while something changes, and the whole is taken."""
    toy.write_bundle(tmp_path, "v", 1)
    whole = toy.write_bundle(tmp_path / "elsewhere", "v", 2)
    target = tmp_path / "bundles" / "v" / "2"

    async def scenario(world: World) -> None:
        assert await world.load() == ["v/1"]
        target.mkdir()
        for file in [
            whole / "bundle.json",
            *sorted(whole.glob("*.onnx")),
            *(whole / name for name in ("parity.json", "baseline.json")),
        ]:
            assert await world.look() == ["v/1"]
            (target / file.name).write_bytes(file.read_bytes()[:20])
            assert await world.look() == ["v/1"]
            shutil.copyfile(file, target / file.name)
            assert world.refused() == {}
            assert world.bundle_health("v") is True
        assert await world.look() == ["v/1", "v/2"]
        assert "refused" not in caplog.text

    (tmp_path / "bundles").mkdir()
    (tmp_path / "v").rename(tmp_path / "bundles" / "v")
    play(tmp_path / "bundles", scenario)


def test_a_broken_bundle_is_refused_then_loaded_once_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy.write_bundle(tmp_path, "v", 1)

    async def scenario(world: World) -> None:
        await world.load()
        folder = toy.write_bundle(tmp_path, "v", 2)
        graph = (folder / "predict.onnx").read_bytes()
        spoil(folder)
        assert await world.look() == ["v/1"]
        assert world.refused() == {}
        assert await world.look() == ["v/1"]
        assert world.refused() == {("v", "digest"): 1}
        assert world.bundle_health("v") is False
        assert "refused" in caplog.text
        (folder / "predict.onnx").write_bytes(graph)
        assert await world.look() == ["v/1", "v/2"]
        assert world.refused() == {}
        assert world.bundle_health("v") is True

    play(tmp_path, scenario)


def test_a_permanent_fault_is_refused_at_once(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path, "v", 1)

    async def scenario(world: World) -> None:
        await world.load()
        toy.write_bundle(tmp_path, "v", 2, schema_version=1)
        shutil.copytree(tmp_path / "v" / "1", tmp_path / "NO VARIANT" / "1")
        assert await world.look() == ["v/1"]
        assert world.refused() == {("v", "manifest"): 1, ("_none", "misplaced"): 1}

    play(tmp_path, scenario)


@pytest.mark.parametrize("step", [open_engine, build_model])
def test_an_unexpected_error_of_one_bundle_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[..., Any]
) -> None:
    for variant in ("u", "v"):
        toy.write_bundle(tmp_path, variant, 1)

    def unlucky(bundle: Any, *rest: Any) -> Any:
        if bundle.name == "u/2":
            raise MemoryError("no more")
        return step(bundle, *rest)

    monkeypatch.setattr(f"speakerlens.serving.models.repository.{step.__name__}", unlucky)

    async def scenario(world: World) -> None:
        assert await world.load() == ["u/1", "v/1"]
        for variant in ("u", "v"):
            toy.write_bundle(tmp_path, variant, 2)
        assert await world.look() == ["u/1", "v/1", "v/2"]
        await world.look()
        assert world.refused() == {("u", "unreadable"): 1}
        assert (world.bundle_health("u"), world.bundle_health("v")) == (False, True)

    play(tmp_path, scenario)


def test_a_loaded_model_survives_damage_on_disk(tmp_path: Path) -> None:
    for version in (1, 2):
        toy.write_bundle(tmp_path, "v", version)

    async def scenario(world: World) -> None:
        await world.load()
        before = world.models.select([])
        spoil(tmp_path / "v" / "2")
        for _ in range(3):
            assert await world.look() == ["v/1", "v/2"]
        assert world.models.select([]) == before
        assert world.refused() == {("v", "digest"): 1}
        assert world.bundle_health("v") is False
        shutil.rmtree(tmp_path / "v" / "1")
        shutil.rmtree(tmp_path / "v" / "2")
        toy.write_bundle(tmp_path, "v", 2, seed=1)
        assert await world.look() == ["v/1", "v/2"]
        assert await world.look() == ["v/2"]
        assert world.models.select([]) != before, "another bundle of the same version takes its place"
        assert (world.refused(), world.bundle_health("v")) == ({}, True)

    play(tmp_path, scenario)


def test_touching_a_bundle_does_not_reload_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = toy.write_bundle(tmp_path, "v", 1)
    caplog.set_level("INFO")

    async def scenario(world: World) -> None:
        await world.load()
        before = world.models.select([])
        (folder / "bundle.json").touch()
        await world.look()
        assert world.models.select([]) == before
        assert caplog.text.count("loading v/1") == 1

    play(tmp_path, scenario)


def test_removed_bundles_are_unloaded_but_for_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A version goes with its folder, a variant with its last; but never the last model of all."""
    for variant, version in (("u", 1), ("v", 1), ("v", 2)):
        toy.write_bundle(tmp_path, variant, version)

    async def scenario(world: World) -> None:
        assert await world.load() == ["u/1", "v/1", "v/2"]
        shutil.rmtree(tmp_path / "v" / "2")
        assert await world.look() == ["u/1", "v/1", "v/2"], "it may be about to be replaced"
        assert await world.look() == ["u/1", "v/1"]
        spoil(tmp_path / "v" / "1")
        (tmp_path / "v" / "1").rename(tmp_path / "v" / "3")
        for _ in range(3):
            assert await world.look() == ["u/1", "v/1"], "nothing on disk can take its place"
        assert (world.bundle_health("u"), world.bundle_health("v")) == (True, False)
        shutil.rmtree(tmp_path / "v")
        assert await world.look() == ["u/1"]
        assert world.bundle_health("v") is None
        shutil.rmtree(tmp_path / "u")
        for _ in range(4):
            assert await world.look() == ["u/1"]
        assert caplog.text.count("has no bundles any more; the loaded models stay in service") == 1
        assert world.bundle_health("u") is False
        toy.write_bundle(tmp_path, "w", 1)
        assert await world.look() == ["w/1"]
        assert (world.bundle_health("u"), world.bundle_health("w")) == (None, True)

    play(tmp_path, scenario)


def test_a_change_while_loading_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked and what was opened must be the same file."""
    toy.write_bundle(tmp_path, "v", 1)

    async def scenario(world: World) -> None:
        await world.load()
        folder = toy.write_bundle(tmp_path, "v", 2)
        on_disk = list_bundles(tmp_path)
        shutil.copyfile(tmp_path / "v" / "1" / "explain.onnx", folder / "more.onnx")
        await world.repository._refresh(on_disk, tolerant=True)
        assert world.names() == ["v/1"]
        assert world.refused() == {}
        assert await world.look() == ["v/1", "v/2"]

    play(tmp_path, scenario)


def test_a_broken_engine_affects_only_its_variants_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment it breaks to the moment it works again; an older version's engine tells nothing."""
    for variant, version in (("u", 1), ("v", 1), ("v", 2)):
        toy.write_bundle(tmp_path, variant, version)
    names = ("", "speakerlens.model/u", "speakerlens.model/v", "speakerlens.bundle/v")
    mended = threading.Event()
    monkeypatch.setattr("speakerlens.serving.engine.session.Engine.reopen", lambda _engine: mended.wait(30))

    async def scenario(world: World) -> None:
        await world.load()
        [u, old, new] = world.models
        old.recovery.start()
        assert [world.health.serving(name) for name in names] == [True, True, True, True]
        new.recovery.start()
        assert [world.health.serving(name) for name in names] == [True, True, False, True]
        await world.look()
        assert [world.health.serving(name) for name in names] == [True, True, False, True]
        u.recovery.start()
        assert [world.health.serving(name) for name in names] == [False, False, False, True]
        mended.set()
        async with asyncio.timeout(30):
            while not all(world.health.serving(name) for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    play(tmp_path, scenario)


def test_no_valid_bundle_is_a_startup_error(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(StartupError, match=r"no usable bundle, 1 refused: .*predict.onnx is not the file"):
            await world.load()

    spoil(toy.write_bundle(tmp_path, "v", 1))
    play(tmp_path, scenario)
