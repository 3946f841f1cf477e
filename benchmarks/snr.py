"""Measure the error of the blind SNR estimate on mixtures of known ratio, with other speakers and noises.

    python -m benchmarks.snr --corpus build/demo/corpus --speech FOLDER --noise FOLDER

The corpus is that of `make demo`; `--speech` holds a folder of recordings for each of more speakers, `--noise` a folder
for each of more kinds of noise (16 kHz; either may be left out). `--fit` fits `measures/snr.json` first, on every other
speaker and the first three fifths of each kind's recordings (the corpus: its training and development splits); the
validation is on the rest. Recordings lose their constant offset before they are mixed; a ratio is that of the energies
over the whole mixture, as in training. Compared are:

- `ours`: `measures.snr`, as served
- `wada`: Kim and Stern, "Robust signal-to-noise ratio estimation based on waveform amplitude distribution analysis"
  (Interspeech 2008), its table computed from its model: gamma-distributed speech (shape 0.4), Gaussian noise
- `energy quantile`: the lower quintile of the short-time energy is the noise's (Hirsch and Ehrlicher 1995)
- `band quantile`: the same in each band (Stahl, Fischer and Bippus 2000)
- `minimum statistics`: the minimum over 1.5 s of the smoothed power in each band, with a constant bias compensation
  (after Martin, "Noise power spectral density estimation based on optimal smoothing and minimum statistics", 2001)

The last four with a monotone calibration on the same fitting part, without which they are off by several decibels.
"""

import argparse
import datetime
import functools
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

import speakerlens.measures.snr
from speakerlens.measures.snr import RATE, Quadratic, analyse, features

Array = NDArray[np.float32]
SNRS = (-5, 0, 5, 10, 15, 20)
FITTED_SNRS = (-7, -2, 3, 8, 13, 18, 23, 28)
MADE = ("white", "pink")
TALKERS = {"one talker": (1, 1), "babble of 3 to 7": (3, 7), "babble of 20": (20, 20)}
RIDGE = 3.0
INTERMITTENT = ("one talker", "clicks", "baby-cry", "clock-tick", "person-sneeze")
"""Kinds that are silent for much of the time; the goal is about the mean of the others."""


class Sources(NamedTuple):
    """Recordings of one part: of each speaker, and of each kind of interference; `talkers` are for babble."""

    speakers: dict[str, list[Path]]
    kinds: dict[str, list[Path]]
    talkers: list[Path]


class Mixture(NamedTuple):
    """One mixture, and what is in it."""

    samples: Array
    kind: str
    snr_db: int


def main() -> None:
    """Fit if asked to, validate, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the demo's manifest.jsonl")
    parser.add_argument("--speech", type=Path, help="folder of folders: one for each speaker")
    parser.add_argument("--noise", type=Path, help="folder of folders: one for each kind of noise")
    parser.add_argument("--fit", action="store_true", help="fit measures/snr.json first")
    parser.add_argument("--each", type=int, default=12, help="mixtures of each kind, ratio and duration")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 6.0], help="durations")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/snr.json"))
    arguments = parser.parse_args()

    def part(name: str, snrs: tuple[int, ...], each: int) -> Iterator[Mixture]:
        sources = read_sources(arguments, name)
        random = np.random.default_rng(len(name))
        for seconds in arguments.seconds:
            yield from mixtures(sources, snrs, each, int(seconds * RATE), random)

    known, raw = [], defaultdict(list)
    figures = []
    for mixture in part("fit", FITTED_SNRS, max(arguments.each // 2, 1)):
        known.append(mixture.snr_db)
        figures.append(features(analyse(mixture.samples)))
        for name, estimate in OTHERS.items():
            raw[name].append(estimate(mixture.samples))
    truth = np.array(known, float)
    fitted = fit(np.array(figures), truth) if arguments.fit else speakerlens.measures.snr.FITTED
    if arguments.fit:
        write_fit(fitted, len(known))
    curves = {name: calibration(np.array(values), truth) for name, values in raw.items()}

    errors: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for mixture in part("validation", SNRS, arguments.each):
        at = (mixture.kind, mixture.snr_db)
        errors["served"][at].append(bounded(fitted.value(features(analyse(mixture.samples)))) - mixture.snr_db)
        for name, estimate in OTHERS.items():
            errors[name][at].append(curves[name](estimate(mixture.samples)) - mixture.snr_db)
    write_report(errors, arguments)


def read_sources(arguments: argparse.Namespace, part: str) -> Sources:
    """Return the recordings to fit on, or those to validate on."""
    fitting = part == "fit"
    splits = ("train", "dev") if fitting else ("test",)
    spoken: dict[str, list[Path]] = defaultdict(list)
    kinds: dict[str, list[Path]] = defaultdict(list)
    talkers = []
    for line in (arguments.corpus / "manifest.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        path = arguments.corpus / row["path"]
        if row["kind"] == "utterance":
            spoken[f"corpus {row['speaker']}"].append(path)
        elif row["split"] in splits and row["kind"] in {"noise", "music"}:
            kinds[path.stem.split("-")[1] if row["kind"] == "noise" else "music"].append(path)
        elif row["split"] in splits and row["kind"] == "speech":
            talkers.append(path)
    speakers = dict(sorted(spoken.items())[not fitting :: 2])
    if arguments.speech:
        folders = sorted(folder for folder in arguments.speech.iterdir() if folder.is_dir())
        speakers |= {f"other {folder.name}": sorted(folder.iterdir()) for folder in folders[not fitting :: 2]}
    if arguments.noise:
        for folder in sorted(folder for folder in arguments.noise.iterdir() if folder.is_dir()):
            files = sorted(folder.iterdir())
            cut = len(files) * 3 // 5
            kinds[f"{folder.name} (recorded)"] = files[:cut] if fitting else files[cut:]
    return Sources(speakers, dict(sorted(kinds.items())), talkers)


def mixtures(
    sources: Sources, snrs: tuple[int, ...], each: int, samples: int, random: np.random.Generator
) -> Iterator[Mixture]:
    """Yield mixtures of every kind at every ratio, with speakers of the corpus and others in turn."""
    groups: dict[str, list[list[Path]]] = defaultdict(list)
    for name, files in sources.speakers.items():
        groups[name.split()[0]].append(files)
    for kind in (*MADE, *TALKERS, *sources.kinds):
        for snr in snrs:
            for index in range(each):
                group = groups[list(groups)[index % len(groups)]]
                speech = concatenated(group[random.integers(len(group))], samples, random)
                noise = interference(kind, sources, samples, random)
                gain = math.sqrt(float((speech**2).sum() / (noise**2).sum())) * 10 ** (-snr / 20)
                mixed = speech + gain * noise
                yield Mixture((mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32), kind, snr)


def concatenated(files: list[Path], samples: int, random: np.random.Generator) -> Array:
    """Return an excerpt of one speaker's recordings in random order, one after the other."""
    parts: list[Array] = []
    for index in random.permutation(len(files)):
        parts.append(read(files[index]))
        if sum(map(len, parts)) >= samples:
            break
    whole = np.concatenate(parts)
    return excerpt(whole, samples, random)


def interference(kind: str, sources: Sources, samples: int, random: np.random.Generator) -> Array:
    """Return interference [samples] of a kind, at any level but silence."""
    if kind in MADE:
        spectrum = np.fft.rfft(random.standard_normal(samples))
        hertz = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 50)
        shaped = spectrum if kind == "white" else spectrum / np.sqrt(hertz)
        return np.asarray(np.fft.irfft(shaped, samples), np.float32)
    if kind in TALKERS:
        talkers = random.integers(TALKERS[kind][0], TALKERS[kind][1] + 1)
        voices = [audible_part(sources.talkers, samples, random) for _ in range(talkers)]
        return np.asarray(np.sum([voice / voice.std() for voice in voices], axis=0), np.float32)
    return audible_part(sources.kinds[kind], samples, random)


def audible_part(files: list[Path], samples: int, random: np.random.Generator) -> Array:
    """Return an excerpt of one of the recordings, without the silence around it."""
    while True:
        recording = read(files[random.integers(len(files))])
        audible = np.flatnonzero(np.abs(recording) > 1e-4)
        if len(audible):
            part = excerpt(recording[audible[0] : audible[-1] + 1], samples, random)
            if part.std() > 1e-5:
                return np.asarray(part - part.mean(), np.float32)


def excerpt(recording: Array, samples: int, random: np.random.Generator) -> Array:
    """Return consecutive samples [samples] from a random place in a recording, repeated if it is too short."""
    whole = np.tile(recording, -(-samples // len(recording)))
    start = random.integers(len(whole) - samples + 1)
    return whole[start : start + samples]


@functools.lru_cache(1000)
def read(file: Path) -> Array:
    """Return a recording without its constant offset."""
    samples, rate = soundfile.read(file, dtype="float32")
    if rate != RATE:
        raise SystemExit(f"{file}: {rate} Hz, {RATE} expected")
    return np.asarray(samples - samples.mean(), np.float32)


def fit(figures: NDArray[np.float64], truth: NDArray[np.float64]) -> Quadratic:
    """Return the coefficients of least absolute error, by reweighted ridge regression."""
    k = figures.shape[1]
    zeros = np.zeros(k)
    raw = Quadratic(figures.mean(axis=0), figures.std(axis=0), 0.0, zeros, np.zeros((k, k)))
    scaled = raw.standardised(figures)
    first, second = np.triu_indices(k)
    terms = np.concatenate([np.ones((len(scaled), 1)), scaled, scaled[:, first] * scaled[:, second]], axis=1)
    weights = np.ones(len(terms))
    for _ in range(6):
        weighted = terms * weights[:, None]
        found = np.linalg.solve(weighted.T @ terms + RIDGE * np.eye(terms.shape[1]), weighted.T @ truth)
        weights = 1 / np.maximum(np.abs(truth - terms @ found), 1.0)
    products = np.zeros((k, k))
    products[first, second] = found[1 + k :]
    return raw._replace(constant=float(found[0]), linear=found[1 : 1 + k], products=products)


def write_fit(fitted: Quadratic, mixtures: int) -> None:
    """Replace the coefficients that are served."""
    rounded = {name: np.round(value, 4).tolist() for name, value in fitted._asdict().items()}
    text = json.dumps({"made_by": "python -m benchmarks.snr --fit", "mixtures": mixtures, **rounded})
    Path(speakerlens.measures.snr.__file__).with_name("snr.json").write_text(text + "\n", "utf-8")


def bounded(estimate: float) -> float:
    """Return an estimate within the bounds that the server reports."""
    return min(max(estimate, speakerlens.measures.snr.LOWEST_DB), speakerlens.measures.snr.HIGHEST_DB)


def calibration(raw: NDArray[np.float64], truth: NDArray[np.float64]) -> Callable[[float], float]:
    """Return a monotone curve from estimates to ratios: means of 25 bins, never falling."""
    bins = np.array_split(np.argsort(raw), 25)
    places = np.array([raw[index].mean() for index in bins])
    values = np.maximum.accumulate([truth[index].mean() for index in bins])
    return lambda estimate: float(np.interp(estimate, places, values))


def wada(samples: Array) -> float:
    """Look up the mean of the logarithm below the logarithm of the mean in the model's table."""
    size = np.abs(samples - samples.mean()) + 1e-10
    statistic = math.log(float(size.mean())) - float(np.log(size).mean())
    return float(np.interp(statistic, wada_table(), np.arange(-20, 101)))


@functools.cache
def wada_table() -> NDArray[np.float64]:
    """Return the statistic at -20 to 100 dB."""
    random = np.random.default_rng(0)
    speech = random.gamma(0.4, size=400_000) * random.choice([-1, 1], 400_000)
    noise = random.standard_normal(400_000)
    speech /= speech.std()
    sizes = (np.abs(speech + noise * 10 ** (-snr / 20)) + 1e-10 for snr in range(-20, 101))
    return np.maximum.accumulate([math.log(size.mean()) - np.log(size).mean() for size in sizes])


def power(samples: Array, shift: int) -> NDArray[np.float64]:
    """Return power spectra [frames, bins] of 32 ms."""
    taper = np.hanning(512)
    view = np.lib.stride_tricks.sliding_window_view(samples, 512)[::shift]
    return np.asarray(np.abs(np.fft.rfft(view * taper)[:, 2:]) ** 2, float)


def snr_over(floor: float, mean: float) -> float:
    """Return the ratio in dB of what exceeds a noise floor to that floor, both as power."""
    share = min(max(floor / mean, 1e-8), 0.999)
    return 10 * math.log10((1 - share) / share)


def energy_quantile(samples: Array) -> float:
    """Estimate with the lower quintile of frames as noise."""
    energy = power(samples, 512).sum(axis=1)
    return snr_over(float(np.quantile(energy, 0.2)), float(energy.mean()))


def band_quantile(samples: Array) -> float:
    """Estimate with the lower quintile of each band as noise of exponentially distributed power."""
    bands = power(samples, 512)
    floor = np.quantile(bands, 0.2, axis=0) / -math.log(0.8)
    return snr_over(float(floor.sum()), float(bands.sum(axis=1).mean()))


def minimum_statistics(samples: Array) -> float:
    """Estimate with the minimum of the smoothed power in each band as noise."""
    bands = power(samples, 128)
    smoothed = bands.copy()
    for now in range(1, len(bands)):
        smoothed[now] = 0.85 * smoothed[now - 1] + 0.15 * bands[now]
    spans = [smoothed[start : start + 187].min(axis=0) for start in range(0, max(len(bands) - 93, 1), 93)]
    return snr_over(float(np.mean(spans, axis=0).sum() * 1.5), float(bands.sum(axis=1).mean()))


OTHERS = {
    "wada": wada,
    "energy quantile": energy_quantile,
    "band quantile": band_quantile,
    "minimum statistics": minimum_statistics,
}


def write_report(errors: dict[str, dict[tuple[str, int], list[float]]], arguments: argparse.Namespace) -> None:
    """Print and write bias, mean absolute error and number of each kind and ratio, and of the groups."""
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
        "mixtures_of_each": arguments.each,
        "seconds": arguments.seconds,
        "estimators": {},
    }
    for name, of_name in errors.items():
        kinds = {kind for kind, _ in of_name}
        intermittent = {kind for kind in kinds if kind.removesuffix(" (recorded)") in INTERMITTENT}
        groups = {"steady": kinds - intermittent, "intermittent": intermittent, "all": kinds}
        shown = {kind: {kind} for kind in sorted(kinds)} if name == "served" else {}
        rows = {}
        for label, members in (shown | groups).items():
            cells = {str(snr): np.concatenate([of_name[kind, snr] for kind in members]) for snr in SNRS}
            cells |= {"all": np.concatenate(list(cells.values()))}
            rows[label] = {
                snr: {"bias": round(float(v.mean()), 2), "mae": round(float(np.abs(v).mean()), 2), "n": len(v)}
                for snr, v in cells.items()
            }
        report["estimators"][name] = rows
        print(f"\n{name}: bias / mean absolute error in dB")
        print(f"| interference | {' | '.join(f'{snr} dB' for snr in SNRS)} | all | n |")
        print("|---" * (len(SNRS) + 3) + "|")
        for label, row in rows.items():
            cells_shown = " | ".join(f"{cell['bias']:+.1f} / {cell['mae']:.1f}" for cell in row.values())
            print(f"| {label} | {cells_shown} | {row['all']['n']} |")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
