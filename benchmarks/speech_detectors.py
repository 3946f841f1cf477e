"""Share of windows in which the server's detector finds speech, by threshold and number of frames.

    python -m benchmarks.speech_detectors SPEECH NOISE

SPEECH has a folder of recordings for each speaker, NOISE one for each kind of noise; 16 kHz, in any format. Windows of
3 s are made of each speaker's recordings and of each noise, and mixtures of both at 10, 0 and -5 dB. Beside are the
windows whose share of speech by `measures.sound` is above 0.15, and the processor time of a window.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.measures.sound import measure_sound
from speakerlens.serving.pipeline import vad

Window = NDArray[np.float32]
SAMPLES = 48_000
MOST = 60
SETTINGS = tuple((threshold, least) for threshold in (0.1, 0.3, 0.5) for least in (6, 10))


def main() -> None:
    """Print a line for each kind of window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("noise", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    speech = [window for folder in folders(arguments.speech) for window in windows(folder, 6)]
    noise = {folder.name: windows(folder, MOST) for folder in folders(arguments.noise)}
    every = [window for found in noise.values() for window in found]
    kinds = {"speech": speech}
    for snr_db in (10, 0, -5):
        kinds[f"at {snr_db} dB"] = [mixed(each, every[rng.integers(len(every))], snr_db) for each in speech]
    heading = [*(f"{threshold:g}/{least}" for threshold, least in SETTINGS), "sound"]
    print("kind".ljust(16), "windows", *(each.rjust(7) for each in heading))
    for name, found in (kinds | noise).items():
        shares = [share(lambda each, s=s: detected(each, *s), found) for s in SETTINGS]  # type: ignore[misc]
        shares.append(share(lambda each: measure_sound(each).speech_share > 0.15, found))
        print(name.ljust(16), str(len(found)).rjust(7), *(f"{100 * each:7.0f}" for each in shares))
    for name, found in {"speech": speech, **{name: found[:20] for name, found in noise.items()}}.items():
        begin = time.process_time()
        for window in found[:20]:
            vad.holds_speech(window)
        print(f"{name}: {1000 * (time.process_time() - begin) / len(found[:20]):.1f} ms a window")


def folders(parent: Path) -> list[Path]:
    """Return the sub-folders, by name."""
    return sorted(path for path in parent.iterdir() if path.is_dir())


def windows(folder: Path, most: int) -> list[Window]:
    """Return up to `most` windows of the recordings of a folder, one after the other."""
    joined = np.zeros(0, np.float32)
    found: list[Window] = []
    for samples in recordings(folder):
        joined = np.append(joined, samples)
        while len(joined) >= SAMPLES:
            found.append(joined[:SAMPLES])
            joined = joined[SAMPLES:]
            if len(found) == most:
                return found
    return found


def recordings(folder: Path) -> Iterator[Window]:
    """Yield the recordings of a folder, float32 [n]."""
    for path in sorted(folder.iterdir()):
        samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
        yield samples.mean(axis=1)


def mixed(speech: Window, noise: Window, snr_db: float) -> Window:
    """Return a mixture."""
    power = max(float((noise**2).mean()), 1e-12)
    sum_of = speech + noise * np.sqrt((speech**2).mean() / power / 10 ** (snr_db / 10))
    scaled: Window = (sum_of / max(1.0, float(np.abs(sum_of).max()))).astype(np.float32)
    return scaled


def detected(window: Window, threshold: float, least: int) -> bool:
    """Return whether the detector finds speech with other settings."""
    with mock.patch.object(vad, "PROBABILITY", threshold), mock.patch.object(vad, "LEAST_FRAMES", least):
        return vad.holds_speech(window)


def share(detect: Callable[[Window], bool], found: list[Window]) -> float:
    """Return the share of windows in which something is detected."""
    return float(np.mean([detect(each) for each in found]))


if __name__ == "__main__":
    main()
