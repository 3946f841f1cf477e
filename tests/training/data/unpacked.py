"""Small trees of the same shape as VoxCeleb1, MUSAN and RIRS_NOISES when they are unpacked."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE

SPEAKERS = ("id10001", "id10002", "id10003")
SPLIT_OF_FILE = (1, 1, 1, 2, 3)
"""What the split file says of each of a video's files."""

SIMULATED = ("smallroom/Room001", "smallroom/Room002", "mediumroom/Room001", "largeroom/Room001")
MEASURED = (
    "RVB2014_type1_rir_largeroom1_far_angla",
    "RVB2014_type1_rir_largeroom1_near_anglb",
    "RWCP_type2_rir_cirline_ofc_imp050",
    "air_type1_air_binaural_aula_carolina_1_7_90_3",
    "air_type1_air_phone_bt_office_hhp",
)


def write_wav(path: Path, samples: NDArray[np.float64], rate: int = SAMPLE_RATE) -> None:
    """Write samples [N] or [N, channels] as 16-bit WAV, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")


def tone(hertz: float, seconds: float = 0.4) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    return wave


def utterances(speakers: Sequence[str] = SPEAKERS) -> list[tuple[int, str]]:
    """Lines of a split file: two videos of five files for each speaker."""
    return [
        (split, f"{speaker}/{speaker[-2:]}video{video}/{number:05d}.wav")
        for speaker in speakers
        for video in (1, 2)
        for number, split in enumerate(SPLIT_OF_FILE)
    ]


def write_split(path: Path, lines: Iterable[tuple[int, str]]) -> Path:
    path.write_text("".join(f"{split} {name}\n" for split, name in lines))
    return path


def make_voxceleb1(folder: Path, wav: str = "wav") -> tuple[Path, Path]:
    """Write three speakers' files under `folder`/`wav`; returns the folder and the split file."""
    for number, (_, name) in enumerate(utterances()):
        write_wav(folder / wav / name, tone(200 + 100 * (number // 10) + number % 10))
    return folder, write_split(folder / "iden_split.txt", utterances())


def make_musan(folder: Path) -> Path:
    """Write four files of each kind under `folder`/musan, from two sources each; and the texts that lie beside them."""
    rng = np.random.default_rng(0)
    places = {
        "noise": ("free-sound", "sound-bible"),
        "music": ("fma", "jamendo"),
        "speech": ("librivox", "us-gov"),
    }
    for kind, sources in places.items():
        for source in sources:
            for number in range(6 if kind == "speech" else 2):
                name = f"{kind}-{source}-{number:04d}.wav"
                write_wav(folder / "musan" / kind / source / name, 0.1 * rng.standard_normal(8000))
            (folder / "musan" / kind / source / "LICENSE").write_text("several")
    (folder / "musan" / "README").write_text("about")
    return folder


def make_rirs(folder: Path, listed: bool = True) -> Path:
    """Write three responses for each of four simulated rooms, five measured ones, and noises, under RIRS_NOISES."""
    rng = np.random.default_rng(1)
    root = folder / "RIRS_NOISES"

    def response(channels: int = 1) -> NDArray[np.float64]:
        decay = np.exp(-np.arange(2000) / 300)[:, None]
        wave: NDArray[np.float64] = 0.1 * rng.standard_normal((2000, channels)) * decay
        wave[0] = 0.9
        return wave

    for room in SIMULATED:
        for number in range(1, 4):
            write_wav(root / "simulated_rirs" / room / f"{Path(room).name}-{number:05d}.wav", response())
    real = root / "real_rirs_isotropic_noises"
    for name in MEASURED:
        write_wav(real / f"{name}.wav", response(channels=4))
    write_wav(real / "RVB2014_type1_noise_largeroom1_1.wav", 0.1 * rng.standard_normal((3000, 8)))
    write_wav(root / "pointsource_noises" / "noise-free-sound-0000.wav", 0.1 * rng.standard_normal(3000))
    if listed:
        place = "RIRS_NOISES/real_rirs_isotropic_noises"
        lines = [f"--rir-id {i:05d} --room-id 001 {place}/{name}.wav\n" for i, name in enumerate(MEASURED)]
        (real / "rir_list").write_text("".join(lines))
    return folder
