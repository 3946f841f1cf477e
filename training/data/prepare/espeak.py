"""The espeak-ng synthesiser, through the C library that the `espeakng-loader` wheel brings.

The library keeps its state in globals that outlive a call, a voice and even a new initialisation: the same sentence
said twice sounds a little different. Whoever needs waveforms that repeat opens one `Espeak` in a fresh process
and makes the same calls in the same order.
"""

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.errors import UserError

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_CHARS_UTF8 = 1
_BUFFER_MS = 200
_RATE, _PITCH, _RANGE = 1, 3, 4

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """How somebody talks.

    Attributes:
        accent: espeak-ng's language, such as "en-us".
        variant: espeak-ng's voice variant, which sets formants and the colour of the voice; "" for none.
        pitch: 0 to 99, within the variant's own pitches.
        range: 0 to 99, how much the pitch moves.
        rate: words a minute.
    """

    accent: str
    variant: str
    pitch: int = 50
    range: int = 50
    rate: int = 170


@contextmanager
def espeak_files() -> Iterator[tuple[Path, Path]]:
    """Give the paths of espeak-ng's library and of its data, valid within the context.

    The data is reached through a short link: the library cuts paths of more than 160 characters.

    Raises:
        UserError: the `espeakng-loader` wheel is not installed.
    """
    try:
        import espeakng_loader  # noqa: PLC0415  optional, and only needed here
    except ImportError as error:
        raise UserError(
            "the demo corpus needs the espeak-ng voices: install the extra `demo` (pip install 'speakerlens[demo]')"
        ) from error
    with tempfile.TemporaryDirectory(prefix="espeak") as folder:
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(espeakng_loader.get_data_path(), target_is_directory=True)
        yield Path(espeakng_loader.get_library_path()), link


class Espeak:
    """The synthesiser. One for a process, used from one thread.

    Raises:
        UserError: the library or its data cannot be loaded.
    """

    def __init__(self, library: Path, data: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as error:
            raise UserError(f"{library}: the espeak-ng library cannot be loaded ({error})") from error
        self._rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, _BUFFER_MS, str(data).encode(), _DO_NOT_EXIT)
        if self._rate <= 0:
            raise UserError(f"{data}: espeak-ng does not start with the voices there")
        self._library.espeak_ng_SetRandSeed(1)  # otherwise the clock seeds the noise of breathy voices
        self._chunks: list[NDArray[np.int16]] = []
        self._callback = _Callback(self._receive)  # kept: the library holds no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, voice: Voice, text: str) -> NDArray[np.float32]:
        """Synthesise text as 16 kHz samples [N] in [-1, 1].

        Raises:
            UserError: the accent does not exist. (An unknown variant is not noticed by espeak-ng: it gives none.)
        """
        name = f"{voice.accent}+{voice.variant}" if voice.variant else voice.accent
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"espeak-ng has no voice {name}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        content = text.encode()
        failed = self._library.espeak_Synth(
            content, ctypes.c_size_t(len(content) + 1), 0, 1, 0, _CHARS_UTF8, None, None
        )
        if failed or not self._chunks:
            raise UserError(f"espeak-ng gave no sound for {text!r} in the voice {name}")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        return np.asarray(soxr.resample(samples, self._rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        """Take a piece of the waveform from the library; 0 asks it to go on."""
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
