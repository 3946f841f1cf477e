"""Values as Grafana writes them: three digits, and a unit that fits the size."""

import math

from deploy.grafana.model import Unit

_SCALES = {
    Unit.BYTES: (1024.0, (" B", " KiB", " MiB", " GiB", " TiB")),
    Unit.HERTZ: (1000.0, (" Hz", " kHz", " MHz")),
    Unit.COUNT: (1000.0, ("", " K", " Mil", " Bil")),
}
_SUFFIXES = {
    Unit.PER_SECOND: " c/s",
    Unit.CALLS_PER_SECOND: " req/s",
    Unit.DECIBELS: " dB",
    Unit.FULL_SCALE: " dBFS",
    Unit.NATS: " nats",
    Unit.CORES: " cores",
    Unit.TIMES_REAL_TIME: " x",
    Unit.RATIO: "",
}
_TIMES = ((86_400.0, " d"), (3600.0, " h"), (60.0, " min"), (1.0, " s"), (1e-3, " ms"), (1e-6, " µs"))


def show(value: float, unit: Unit) -> str:
    """The value with its unit; a dash where there is none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if unit is Unit.SHARE:
        return f"{_digits(100 * value)}%"
    if unit is Unit.SECONDS:
        size, suffix = next((each for each in _TIMES if abs(value) >= each[0]), (1.0, " s"))
        return f"{_digits(value / size)}{suffix}"
    if unit in _SCALES:
        base, suffixes = _SCALES[unit]
        power = min(int(math.log(abs(value), base)), len(suffixes) - 1) if abs(value) >= base else 0
        return f"{_digits(value / base**power)}{suffixes[power]}"
    return f"{_digits(value)}{_SUFFIXES[unit]}"


def _digits(value: float) -> str:
    if value == 0 or abs(value) < 1e-9:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
