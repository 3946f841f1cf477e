"""The rules of deploy/prometheus at a shorter time scale, for a drill of minutes.

Every range and every `for` of the rules is multiplied by one factor; thresholds and expressions stay. Alerts on probes
keep their durations, because probes cannot run faster.
"""

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[1] / "prometheus"
FILES = ("recording.yml", "alerts.yml")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
DURATION = re.compile(r"(\d+)([smhd])")
RANGE = re.compile(r"\[([^]]*)\]")
SCRAPES = 4
UNCHANGED_GROUPS = ("speakerlens-probes",)


def write(folder: Path, scale: float, interval: float) -> list[Path]:
    """Write the shortened rules into a folder, and return the files.

    Args:
        folder: is created if it does not exist.
        scale: factor of all durations.
        interval: between scrapes, in seconds; no range is shorter than four of them.

    Raises:
        ValueError: a duration has a form that is not supported, such as `1m30s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FILES:
        document = yaml.safe_load((FOLDER / name).read_text("utf-8"))
        for group in document["groups"]:
            for rule in group["rules"] if group["name"] not in UNCHANGED_GROUPS else ():
                _shorten(rule, scale, interval)
        file = folder / name
        file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
        written.append(file)
    return written


def _shorten(rule: dict[str, Any], scale: float, interval: float) -> None:
    if re.search(r"\boffset\b", rule["expr"]):
        raise ValueError(f"offsets are not shortened: {rule['expr']}")
    rule["expr"] = RANGE.sub(lambda found: f"[{_shorter(found[1], scale, SCRAPES * interval)}]", rule["expr"])
    if "for" in rule:
        rule["for"] = _shorter(rule["for"], scale, 0.0)


def _shorter(duration: str, scale: float, least: float) -> str:
    found = DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"{duration!r} is not a single duration")
    return f"{round(1000 * max(least, scale * int(found[1]) * UNITS[found[2]]))}ms"
