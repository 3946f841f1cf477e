"""Keeps what is served equal to what lies on disk, and goes on with what it has where the disk offers nothing better.

Of every variant, the newest versions that hold are loaded, as many as the configuration says. A bundle that does not
hold is refused with the reason, and the next older one takes its place; where nothing older is left on disk, the model
that is loaded stays. With `watch`, a folder is read again when it has changed. One that looks as if it were still being
written is refused only once it has stopped changing, and a model goes only when two looks found its folder missing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from speakerlens.serving.bundle import Bundle, BundleError, Fault
from speakerlens.serving.config import Config
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.errors import StartupError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.folders import BundleFolder, Stamp, list_bundles
from speakerlens.serving.models.loader import build_model, open_engine
from speakerlens.serving.models.registry import Model, Models

log = logging.getLogger(__name__)


class Health(Protocol):
    """Receives the state of models and bundles."""

    def report_models(self, working: Mapping[str, bool]) -> None:
        """Replace the known variants, and whether the engine of each one's newest model works."""

    def report_bundles(self, current: Mapping[str, bool]) -> None:
        """Replace the variants on disk, and whether the newest version of each is the one served."""


@dataclass(frozen=True)
class Refusal:
    """A folder that is not served as it is now, and why; not `final` while it may only be half written."""

    found: BundleFolder
    fault: Fault
    reason: str
    final: bool


class Repository:
    """The bundles on disk and the models made of them; lives on the event loop, and does its work beside it.

    Args:
        config: where the bundles are, how many versions to keep, and what models need.
        models: what is served; kept up to date.
        scheduler: of the device that the models compute on.
        metrics: hears of refusals.
        health: hears whether each variant's newest bundle is served, and which variants there are.
    """

    def __init__(self, config: Config, models: Models, scheduler: Scheduler, metrics: Metrics, health: Health) -> None:
        self._config = config
        self._models = models
        self._scheduler = scheduler
        self._metrics = metrics
        self._health = health
        self._loaded: dict[Path, tuple[Model, Stamp]] = {}
        self._refused: dict[Path, Refusal] = {}
        self._missing: set[Path] = set()
        self._variants: set[str] = set()
        self._complaint = ""

    async def load(self) -> None:
        """Loads what there is. A bundle that is refused does not stop the others.

        Raises:
            StartupError: nothing can be served.
        """
        await self._refresh(look(self._config.bundles), patient=False)
        if self._loaded:
            return
        reasons = "; ".join(f"{each.found.folder}: {each.reason}" for each in list(self._refused.values())[:3])
        raise StartupError(
            f"--bundles {self._config.bundles}: no usable bundle, {len(self._refused)} refused: {reasons}"
        )

    async def watch(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._config.watch)
            try:
                await self._refresh(await asyncio.to_thread(list_bundles, self._config.bundles), patient=True)
            except OSError as error:
                self._complain(f"{self._config.bundles} cannot be read ({error.strerror})")
            except Exception:
                log.exception("looking for new bundles failed unexpectedly")

    async def _refresh(self, on_disk: dict[str, list[BundleFolder]], patient: bool) -> None:
        folders = {found.folder for versions in on_disk.values() for found in versions}
        self._refused = {folder: each for folder, each in self._refused.items() if folder in folders}
        # A folder that is missing for one look may be on its way to being replaced.
        missing = self._loaded.keys() - folders
        spared, self._missing = missing - self._missing, missing
        for variant, versions in on_disk.items():
            keep = await self._newest(versions, patient)
            if keep:
                self._take_out([model for model in self._of(variant) if model not in keep], spared)
        gone = [model for model in self._models if model.bundle.variant not in on_disk]
        if gone and not spared and len(gone) == len(list(self._models)):
            self._complain(f"{self._config.bundles} has no bundle any more")
        else:
            self._complaint = ""
            self._take_out(gone, spared)
        self._report(on_disk)

    async def _newest(self, folders: Sequence[BundleFolder], patient: bool) -> list[Model]:
        """Loads what is missing of the newest versions that hold, and returns their models."""
        keep: list[Model] = []
        for found in folders:
            if len(keep) == self._config.keep_versions:
                break
            model = await self._model_of(found, patient)
            if model is not None:
                keep.append(model)
        return keep

    async def _model_of(self, found: BundleFolder, patient: bool) -> Model | None:
        """The model of a folder, loaded now if it has to be; the one before, if any, where the folder is refused."""
        model, stamp = self._loaded.get(found.folder, (None, None))
        before = self._refused.get(found.folder)
        if stamp == found.stamp:
            self._refused.pop(found.folder, None)
            return model
        if before is not None and before.final and before.found.stamp == found.stamp:
            return model
        unchanged = before is not None and before.found.stamp == found.stamp
        try:
            known = None if model is None else model.bundle.digest
            opened = await asyncio.to_thread(open_engine, found, self._config, known)
            if opened is not None:
                model = self._put(*opened)
        except BundleError as error:
            self._refuse(
                Refusal(found, error.fault, str(error), unchanged or not (patient and error.fault.may_be_transient))
            )
            return model
        except StartupError as error:
            if not patient:
                raise
            self._refuse(Refusal(found, Fault.GRAPH, str(error), final=True))
            return model
        except Exception as error:  # whatever it is, the other bundles are looked at
            log.exception("loading %s failed unexpectedly", found.folder)
            self._refuse(Refusal(found, Fault.UNREADABLE, f"{type(error).__name__}: {error}", unchanged or not patient))
            return model
        self._refused.pop(found.folder, None)
        assert model is not None, "a bundle that is known already has its model"
        self._loaded[found.folder] = model, found.stamp
        return model

    def _put(self, bundle: Bundle, engine: Engine) -> Model:
        model = build_model(bundle, engine, self._scheduler, self._config, self._metrics)
        model.recovery.subscribe(self._report_models)
        self._models.put(model)
        return model

    def _refuse(self, refusal: Refusal) -> None:
        before = self._refused.get(refusal.found.folder)
        self._refused[refusal.found.folder] = refusal
        if refusal.final:
            log.error("refused %s: %s", refusal.found.folder, refusal.reason)
        elif before is None:
            log.info("waiting for %s, which may not be whole yet: %s", refusal.found.folder, refusal.reason)

    def _take_out(self, models: Sequence[Model], spared: set[Path]) -> None:
        for model in models:
            if model.bundle.folder not in spared:
                log.info("%s is served no longer", model.bundle.name)
                del self._loaded[model.bundle.folder]
                self._models.take_out(model)

    def _of(self, variant: str) -> list[Model]:
        return [model for model in self._models if model.bundle.variant == variant]

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.error("%s; serving goes on with what is loaded", complaint)
        self._complaint = complaint
        self._health.report_bundles({model.bundle.variant: False for model in self._models})

    def _report(self, on_disk: dict[str, list[BundleFolder]]) -> None:
        final = [each for each in self._refused.values() if each.final]
        self._metrics.report_refused(Counter((each.found.variant, each.fault) for each in final))
        self._variants = set(on_disk)
        self._report_models()
        if self._complaint:
            return
        newest = dict.fromkeys(on_disk, 0) | {
            name: model.bundle.version for name, model in self._newest_models().items()
        }
        stale = {each.found.variant for each in final if each.found.version >= newest[each.found.variant]}
        self._health.report_bundles({name: version > 0 and name not in stale for name, version in newest.items()})

    def _report_models(self, _works: bool = True) -> None:
        """Tells which variants work; called at every change of that."""
        working = {name: not model.recovery.broken for name, model in self._newest_models().items()}
        self._health.report_models(dict.fromkeys(self._variants, False) | working)

    def _newest_models(self) -> dict[str, Model]:
        return {model.bundle.variant: model for model in self._models}  # which come by version


def look(root: Path) -> dict[str, list[BundleFolder]]:
    """What there is to load.

    Raises:
        StartupError: nothing.
    """
    if not root.is_dir():
        raise StartupError(f"--bundles {root}: no such folder")
    on_disk = list_bundles(root)
    if not on_disk:
        raise StartupError(f"--bundles {root}: no bundle there; expected <variant>/<version>/bundle.json")
    return on_disk
