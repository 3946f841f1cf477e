"""The repository against a model of it, as bundles appear, change, break and vanish; without real engines."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as Drawn
from hypothesis.stateful import RuleBasedStateMachine, consumes, initialize, invariant, rule

from speakerlens.serving.bundle import BundleError, Fault
from speakerlens.serving.config import Config
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.folders import list_bundles
from speakerlens.serving.models.registry import Models
from speakerlens.serving.models.repository import Repository

VARIANTS, VERSIONS = ("u", "v"), (1, 2, 3, 4)
KEEP = 2
WHOLE, PARTIAL, BROKEN = "whole", "partial", "broken"

Place = tuple[str, int]


@dataclass
class Disk:
    """A folder's content on disk, and the content of the last scan.

    Attributes:
        digest: of the content; grows with every write.
        state: whole, partial (a fault that may be transient) or broken (one that is not).
    """

    digest: int
    state: str


@dataclass
class Oracle:
    """What a repository must serve and refuse, by the rules of its module's docstring."""

    served: dict[Place, int] = field(default_factory=dict)
    seen: dict[Place, int] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)
    missing: set[Place] = field(default_factory=set)

    def scan(self, disk: dict[Place, Disk]) -> None:
        missing = self.served.keys() - disk.keys()
        first_time = missing - self.missing
        self.missing = missing
        self.refused = {place: fault for place, fault in self.refused.items() if place in disk}
        seen, self.seen = self.seen, {place: found.digest for place, found in disk.items()}
        for variant in {variant for variant, _ in disk}:
            keep: list[Place] = []
            versions = sorted((place for place in disk if place[0] == variant), key=lambda place: -place[1])
            for number, place in enumerate(versions):
                if len(keep) == KEEP:
                    for other in versions[number:]:  # not read in this scan
                        if other in seen:
                            self.seen[other] = seen[other]
                        else:
                            del self.seen[other]
                    break
                if self._load(place, disk[place], seen.get(place) == disk[place].digest):
                    keep.append(place)
            if keep:
                self._remove({place for place in self.served if place[0] == variant} - set(keep) - first_time)
        gone = {place for place in self.served if place[0] not in {variant for variant, _ in disk}}
        # The last models of all stay, however long their folders are missing.
        if not gone or first_time or len(gone) < len(self.served):
            self._remove(gone - first_time)

    def _load(self, place: Place, found: Disk, unchanged: bool) -> bool:
        if found.state == WHOLE:
            self.served[place] = found.digest
            self.refused.pop(place, None)
        elif found.state == BROKEN:
            self.refused[place] = Fault.MANIFEST
        elif unchanged:
            self.refused[place] = Fault.DIGEST
        else:
            self.refused.pop(place, None)
        return place in self.served

    def _remove(self, places: set[Place]) -> None:
        for place in places:
            del self.served[place]


class RepositoryMachine(RuleBasedStateMachine):
    """Random changes of the directory, with a scan whenever hypothesis draws one."""

    places = Drawn("places")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="bundles-"))
        self.disk: dict[Place, Disk] = {}
        self.writes = 0
        self.oracle = Oracle()
        self.health: dict[str, dict[str, bool]] = {}
        self.closed: list[int] = []
        metrics = Metrics()
        self.metrics, self.models = metrics, Models(metrics)
        config = Config(bundles=self.root, keep_versions=KEEP)
        health = SimpleNamespace(
            report_models=lambda working: self.health.update(models=dict(working)),
            report_bundles=lambda current: self.health.update(bundles=dict(current)),
        )
        self.repository = Repository(config, self.models, cast(Any, None), metrics, cast(Any, health))

    @initialize()
    def start(self) -> None:
        self.write(("v", 1), WHOLE)
        self.scan()

    @rule(target=places, variant=st.sampled_from(VARIANTS), version=st.sampled_from(VERSIONS))
    def place(self, variant: str, version: int) -> Place:
        return variant, version

    @rule(place=places, state=st.sampled_from([WHOLE, WHOLE, PARTIAL, BROKEN]))
    def write(self, place: Place, state: str) -> None:
        """Publish, replace, damage or repair a bundle."""
        self.writes += 1
        folder = self.root / place[0] / str(place[1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "content").write_text(f"{self.writes} {state}" + "." * self.writes)  # a new size is a new stamp
        self.disk[place] = Disk(self.writes, state)

    @rule(place=consumes(places))
    def remove(self, place: Place) -> None:
        if place in self.disk:
            shutil.rmtree(self.root / place[0] / str(place[1]))
            del self.disk[place]

    @rule(place=places)
    def vanish_for_one_scan(self, place: Place) -> None:
        if place not in self.disk:
            return
        folder, aside = self.root / place[0] / str(place[1]), self.root / f".{place[0]}-{place[1]}"
        folder.rename(aside)
        found = self.disk.pop(place)
        self.scan()
        aside.rename(folder)
        self.disk[place] = found
        self.scan()

    @rule()
    def scan(self) -> None:
        self.oracle.scan(self.disk)

        async def refresh() -> None:
            with mock.patch.multiple(
                "speakerlens.serving.models.repository", open_engine=self.open, build_model=self.build
            ):
                await self.repository._refresh(list_bundles(self.root), tolerant=True)
            await asyncio.sleep(0)  # models that were taken out are closed

        asyncio.run(refresh())

    def open(self, found: Any, _config: Config, known: str | None) -> Any:
        content = (found.folder / "content").read_text()
        number, state = content.rstrip(".").split(" ")
        if state != WHOLE:
            raise BundleError("unfit", Fault.DIGEST if state == PARTIAL else Fault.MANIFEST)
        bundle = SimpleNamespace(
            folder=found.folder,
            variant=found.variant,
            version=found.version,
            name=found.name,
            digest=number,
            code_revision="",
            precision="fp32",
            training_data_digest="",
        )
        return None if number == known else (bundle, None)

    def build(self, bundle: Any, *_rest: Any) -> Any:
        async def close() -> None:
            self.closed.append(int(bundle.digest))

        recovery = SimpleNamespace(subscribe=lambda _listener: None, broken=False)
        return FakeModel(bundle, recovery, close)

    @invariant()
    def exactly_the_expected_models_are_served(self) -> None:
        served = {(model.bundle.variant, model.bundle.version): int(model.bundle.digest) for model in self.models}
        assert served == self.oracle.served
        assert not set(served.values()) & set(self.closed)
        assert served, "the last model is never taken out"

    @invariant()
    def refusals_are_counted(self) -> None:
        samples = [sample for metric in self.metrics.bundles_refused.collect() for sample in metric.samples]
        expected: dict[tuple[str, str], int] = {}
        for (variant, _), fault in self.oracle.refused.items():
            expected[variant, fault] = expected.get((variant, fault), 0) + 1
        assert {
            (each.labels["variant"], each.labels["reason"]): each.value for each in samples if each.value
        } == expected

    @invariant()
    def health_names_the_variants_that_work(self) -> None:
        working = {variant for variant, works in self.health["models"].items() if works}
        assert working == {variant for variant, _ in self.oracle.served}

    def teardown(self) -> None:
        shutil.rmtree(self.root)


@dataclass(eq=False)
class FakeModel:
    """A model without an engine."""

    bundle: Any
    recovery: Any
    close: Any


RepositoryMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRepositoryStates = RepositoryMachine.TestCase
