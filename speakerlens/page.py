"""The page in the browser: its files, and what it has to know of a bundle."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from speakerlens import palette

ASSETS = (
    "index.html",
    "style.css",
    "app.mjs",
    "audio.mjs",
    "draw.mjs",
    "engine.mjs",
    "local.mjs",
    "network.mjs",
    "recorder.mjs",
    "remote.mjs",
    "windows.mjs",
    "worker.mjs",
)
EXAMPLES = 8


def asset(name: str) -> bytes:
    """Return the content of one of the page's files."""
    return resources.files("speakerlens").joinpath("web", name).read_bytes()


def model_entry(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a bundle, from its manifest."""
    front_end = manifest["front_end"]
    return {
        "variant": manifest["variant"],
        "version": manifest["version"],
        "colour": palette.looks([manifest["variant"]])[manifest["variant"]].colour,
        "speakers": manifest["speakers"],
        "stages": [{key: stage[key] for key in ("name", "rows", "stride")} for stage in manifest["stages"]],
        "fused_stages": manifest["fused_stages"],
        "mel_centres_hz": front_end["mel_centres_hz"],
        "frame_length": front_end["frame_length"],
        "frame_shift": front_end["frame_shift"],
        "card": _card(manifest),
    }


def page_settings(models: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, str]], min_samples: int) -> Any:
    """Return the content of `models.json`, but for what only graphs in the browser need."""
    themes = {name: theme._asdict() for name, theme in palette.THEMES.items()}
    return {"models": list(models), "examples": list(examples), "min_samples": min_samples, "themes": themes}


def example_files(folder: Path, manifest: Mapping[str, Any]) -> list[tuple[str, str, Path]]:
    """Return the first utterances of a bundle: file name on the page, speaker, and path."""
    return [
        (re.sub(r"[^A-Za-z0-9_.-]", "_", Path(listed["file"]).name), listed["speaker"], folder / listed["file"])
        for listed in manifest.get("utterances", [])[:EXAMPLES]
    ]


def _card(manifest: Mapping[str, Any]) -> dict[str, str]:
    network, calibration = manifest["network"], manifest["calibration"]
    persons = f"{calibration['stranger_speakers']} {calibration['strangers']}"
    basis = f"{calibration['stranger_utterances']} utterances of {persons}"
    return {
        "network": f"ResNet {network['blocks']}, width {network['width']}, {network['parameters']:,} parameters",
        "speakers": str(len(manifest["speakers"])),
        "threshold": f"lets {calibration['false_acceptance']:.0%} of out-of-set utterances pass; set on {basis}",
        "exported": manifest["created"][:10],
        "code": manifest["code_revision"],
        "training data": manifest["training_data_digest"][:12],
    }
