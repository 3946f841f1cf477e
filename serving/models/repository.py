"""Keep the loaded models in sync with the bundle directory.

Of every variant, the newest valid versions are loaded, as many as configured. An invalid bundle is refused with the
reason and the next older version takes its place; if no older one is on disk, the loaded model stays. At each `look`, a
folder is read again if it has changed. A bundle that may be incomplete is refused only once it has stopped changing,
and a model is removed only after two scans in a row without its folder.
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
    """Why a folder is not served in its present state; not `final` while it may be incomplete."""

    found: BundleFolder
    fault: Fault
    reason: str
    final: bool


class Repository:
    """Keep loaded models in sync with the bundle directory. Event-loop only; blocking work runs in threads.

    Args:
        config: bundle directory, versions to keep, and settings of models.
        models: the served models; kept up to date.
        scheduler: of the device that models run on.
        metrics: count refused bundles.
        health: receives the state of models and bundles.
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
        """Load all bundles; one that is refused does not stop the others.

        Raises:
            StartupError: no bundle can be served.
        """
        await self._refresh(await asyncio.to_thread(scan, self._config.bundles), tolerant=False)
        if self._loaded:
            return
        reasons = "; ".join(f"{each.found.folder}: {each.reason}" for each in list(self._refused.values())[:3])
        raise StartupError(
            f"--bundles {self._config.bundles}: no usable bundle, {len(self._refused)} refused: {reasons}"
        )

    async def look(self) -> None:
        """Scan the directory once, and load, replace and take out models as it says; errors are logged."""
        try:
            await self._refresh(await asyncio.to_thread(list_bundles, self._config.bundles), tolerant=True)
        except OSError as error:
            self._complain(f"{self._config.bundles} cannot be read ({error.strerror})")
        except Exception:
            log.exception("scanning for new bundles failed unexpectedly")

    async def _refresh(self, on_disk: dict[str, list[BundleFolder]], tolerant: bool) -> None:
        folders = {found.folder for versions in on_disk.values() for found in versions}
        self._refused = {folder: each for folder, each in self._refused.items() if folder in folders}
        # A folder that is missing in one scan may be about to be replaced.
        missing = self._loaded.keys() - folders
        kept_once, self._missing = missing - self._missing, missing
        for variant, versions in on_disk.items():
            keep = await self._newest(versions, tolerant)
            if keep:
                self._take_out([model for model in self._of(variant) if model not in keep], kept_once)
        gone = [model for model in self._models if model.bundle.variant not in on_disk]
        if gone and not kept_once and len(gone) == len(list(self._models)):
            self._complain(f"{self._config.bundles} has no bundles any more")
        else:
            self._complaint = ""
            self._take_out(gone, kept_once)
        self._report(on_disk)

    async def _newest(self, folders: Sequence[BundleFolder], tolerant: bool) -> list[Model]:
        """Return the models of the newest valid versions, loading those that are not loaded yet."""
        keep: list[Model] = []
        for found in folders:
            if len(keep) == self._config.keep_versions:
                break
            model = await self._model_of(found, tolerant)
            if model is not None:
                keep.append(model)
        return keep

    async def _model_of(self, found: BundleFolder, tolerant: bool) -> Model | None:
        """Return the model of a folder, loading it if needed; the present model or None if the folder is refused."""
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
                Refusal(found, error.fault, str(error), unchanged or not (tolerant and error.fault.may_be_transient))
            )
            return model
        except StartupError as error:
            if not tolerant:
                raise
            self._refuse(Refusal(found, Fault.GRAPH, str(error), final=True))
            return model
        except Exception as error:  # the other bundles must be loaded, whatever the error
            log.exception("loading %s failed unexpectedly", found.folder)
            reason = f"{type(error).__name__}: {error}"
            self._refuse(Refusal(found, Fault.UNREADABLE, reason, unchanged or not tolerant))
            return model
        self._refused.pop(found.folder, None)
        assert model is not None, "a bundle whose digest is known has a model"
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
            log.info("waiting for %s, which may be incomplete: %s", refusal.found.folder, refusal.reason)

    def _take_out(self, models: Sequence[Model], kept_once: set[Path]) -> None:
        for model in models:
            if model.bundle.folder not in kept_once:
                log.info("%s is no longer served", model.bundle.name)
                del self._loaded[model.bundle.folder]
                self._models.take_out(model)

    def _of(self, variant: str) -> list[Model]:
        return [model for model in self._models if model.bundle.variant == variant]

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.error("%s; the loaded models stay in service", complaint)
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
        stale = {
            each.found.variant for each in final if each.found.error or each.found.version >= newest[each.found.variant]
        }
        self._health.report_bundles({name: version > 0 and name not in stale for name, version in newest.items()})

    def _report_models(self, _works: bool = True) -> None:
        """Report the variants and whether their engines work; called at every change."""
        working = {name: not model.recovery.broken for name, model in self._newest_models().items()}
        self._health.report_models(dict.fromkeys(self._variants, False) | working)

    def _newest_models(self) -> dict[str, Model]:
        return {model.bundle.variant: model for model in self._models}  # ascending by version


def scan(root: Path) -> dict[str, list[BundleFolder]]:
    """Return the bundle folders under `root` by variant, newest first.

    Raises:
        StartupError: there is none, or `root` cannot be listed.
    """
    if not root.is_dir():
        raise StartupError(f"--bundles {root}: no such folder")
    try:
        on_disk = list_bundles(root)
    except OSError as error:
        raise StartupError(f"--bundles {root}: it cannot be listed: {error.strerror}") from error
    if not on_disk:
        raise StartupError(f"--bundles {root}: no bundle there; expected <variant>/<version>/bundle.json")
    return on_disk
