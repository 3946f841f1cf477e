"""Simulated impulse responses of random shoebox rooms, by pyroomacoustics."""

import csv
import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from speakerlens.training.data.audio import SAMPLE_RATE, write_audio
from speakerlens.training.data.mixing import DIRECT_SAMPLES
from speakerlens.training.errors import UserError
from speakerlens.training.files import building

RT60_RANGE = (0.2, 0.9)
"""Seconds; typical of furnished to bare rooms."""

TABLE = "rooms.csv"

_PEAK = 0.7
_MIRRORED = 8
_SCATTERING = 0.1
_WALL_DISTANCE = 0.5
_NEAREST = 0.5
_DRAWS = 100
_CORRECTIONS = 3  # iterated, as the decay is not exactly exponential

_Array = NDArray[np.float64]


class Room(NamedTuple):
    """A shoebox room.

    Attributes:
        size: width, depth and height [3], in metres.
        talker, microphone: positions [3], in metres.
        rt60: reverberation time (decay by 60 dB), in seconds.
    """

    size: _Array
    talker: _Array
    microphone: _Array
    rt60: float

    @property
    def distance(self) -> float:
        """From talker to microphone, in metres."""
        return float(np.linalg.norm(self.talker - self.microphone))


def draw_room(rng: np.random.Generator) -> Room:
    """Return a random room of 3 to 10 by 3 to 8 by 2.4 to 4 m, talker and microphone at least 0.5 m off the walls.

    They are at least 0.5 m apart, and at most 0.6 of the shorter side, so that the direct sound is the largest sample:
    responses are aligned by it.
    """
    rt60 = float(rng.uniform(*RT60_RANGE))
    size = np.array([rng.uniform(3, 10), rng.uniform(3, 8), rng.uniform(2.4, 4)])
    while True:
        talker, microphone = rng.uniform(_WALL_DISTANCE, size - _WALL_DISTANCE, (2, 3))
        room = Room(size, talker, microphone, rt60)
        if _NEAREST <= room.distance <= 0.6 * min(size[:2]):
            return room


def simulate(room: Room, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Simulate a room's impulse response: image sources for early reflections, ray tracing for late ones.

    Wall absorption follows Sabine's formula, with 10 % scattering and air absorption. The resulting decay depends on
    the room's shape and is off by up to a fifth in flat rooms. The response is therefore multiplied by the exponential
    that turns the measured reverberation time into the wanted one, as a change of the air's absorption would.

    Args:
        room: the room.
        seconds: length of the response.
        rng: the only source of randomness.

    Returns:
        float32 [seconds x 16000] with peak 0.7; the direct sound comes 2.5 ms after the start.

    Raises:
        UserError: pyroomacoustics is not installed.
    """
    acoustics = room_simulator()
    acoustics.constants.set("num_threads", 1)  # sums round differently with the number of threads
    acoustics.random.seed(rng)
    absorption, _ = acoustics.inverse_sabine(room.rt60, room.size)
    box = acoustics.ShoeBox(
        room.size,
        fs=SAMPLE_RATE,
        materials=acoustics.Material(absorption, _SCATTERING),
        max_order=_MIRRORED,
        ray_tracing=True,
        air_absorption=True,
    )
    box.set_ray_tracing(time_thres=1.2 * room.rt60)
    box.add_source(room.talker)
    box.add_microphone(room.microphone)
    box.compute_rir()
    response: _Array = box.rir[0][0]
    response = response[_direct(acoustics, room) - DIRECT_SAMPLES :]
    time = (np.arange(len(response)) - DIRECT_SAMPLES) / SAMPLE_RATE
    for _ in range(_CORRECTIONS):
        response = response * 10.0 ** (-3.0 * time * (1 / room.rt60 - 1 / reverberation_time(response)))
    samples = round(seconds * SAMPLE_RATE)
    response = np.pad(response[:samples], (0, max(0, samples - len(response))))
    return np.asarray(response * (_PEAK / np.abs(response).max()), dtype=np.float32)


def make_room(seconds: float | None, rng: np.random.Generator) -> tuple[Room, NDArray[np.float32]]:
    """Draw and simulate rooms until the direct sound of one is its largest sample.

    Args:
        seconds: length of the response; None for the room's own reverberation time.
        rng: the only source of randomness.

    Returns:
        The room, and its response as `simulate` returns it.
    """
    for _ in range(_DRAWS):
        room = draw_room(rng)
        response = simulate(room, room.rt60 if seconds is None else seconds, rng)
        if abs(int(np.abs(response).argmax()) - DIRECT_SAMPLES) <= 1:
            return room, response
    raise RuntimeError(f"none of {_DRAWS} rooms had a direct sound louder than its reflections")


def reverberation_time(response: _Array) -> float:
    """Return the reverberation time of a response [N] in seconds: T20 of ISO 3382-2.

    A line is fitted to Schroeder's backward integral after the largest sample, between -5 and -25 dB.
    """
    after = response[int(np.abs(response).argmax()) + 1 :]
    energy = np.cumsum(after[::-1] ** 2)[::-1]
    level = 10.0 * np.log10(energy[energy > 0] / energy[0])
    fitted = np.flatnonzero((level <= -5.0) & (level >= -25.0))
    slope = np.polyfit(fitted / SAMPLE_RATE, level[fitted], 1)[0]
    return float(-60.0 / slope)


def prepare_rooms(out: Path, count: int, seed: int, console: Console) -> None:
    """Write `count` impulse responses of random rooms to `out`, and a table of the rooms' properties.

    Each room has its own random generator, so a larger count begins with the same rooms.

    Raises:
        UserError: `out` is not free, a number is wrong, or pyroomacoustics is not installed.
    """
    if count < 1:
        raise UserError(f"--count must be at least 1, not {count}")
    if seed < 0:
        raise UserError(f"--seed must be at least 0, not {seed}")
    with building(out) as folder, (folder / TABLE).open("w", encoding="utf-8", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["file", "rt60_seconds", "width_m", "depth_m", "height_m", "distance_m"])
        for number in track(range(count), "rooms", console=console):
            room, response = make_room(None, np.random.default_rng([seed, number]))
            name = f"room-{number:05d}.flac"
            write_audio(folder / name, response)
            rows.writerow([name, *(f"{value:.2f}" for value in (room.rt60, *room.size, room.distance))])
    console.print(f"{out}: {count} rooms, listed in {TABLE}", soft_wrap=True, markup=False)


def _direct(acoustics: ModuleType, room: Room) -> int:
    """Return the sample of the direct sound: its travel time and the delay of the simulator's interpolation filter."""
    travel: float = room.distance / acoustics.constants.get("c") * SAMPLE_RATE
    delay: int = acoustics.constants.get("frac_delay_length") // 2
    return round(travel) + delay


def room_simulator() -> ModuleType:
    """Import pyroomacoustics; raise UserError if it is not installed."""
    try:
        return importlib.import_module("pyroomacoustics")
    except ModuleNotFoundError as error:
        raise UserError("rooms are simulated by pyroomacoustics: install the extra `demo`") from error
