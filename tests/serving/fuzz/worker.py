"""Decodes what comes in on stdin, in a process that a crash may take and that has little memory and time.

In: the length as 4 bytes, then the file. Out: a line of JSON with the outcome and the resident memory in kB.
"""

import json
import resource
import struct
import sys
import traceback

import numpy as np

from speakerlens.serving.errors import RequestError
from speakerlens.serving.pipeline.decode import EncodedAudio, decode
from speakerlens.serving.pipeline.samples import DurationLimit
from tests.serving.fuzz.running import resident_kb

MAX_SECONDS = 5.0
ADDRESS_SPACE = 3 * 2**30


def outcome(data: bytes) -> str:
    """OK, the status of the refusal, or a trace of what should not be."""
    try:
        samples = decode(EncodedAudio(data), DurationLimit(MAX_SECONDS)).samples
    except RequestError as error:
        return error.code if len(str(error)) < 500 else f"a message of {len(str(error))} characters"
    except Exception:  # noqa: BLE001 - reported to the fuzzer
        return traceback.format_exc()
    if samples.dtype != np.float32 or not np.isfinite(samples).all():
        return "samples that are not finite float32"
    return "OK" if len(samples) <= MAX_SECONDS * 16_000 + 1 else f"{len(samples)} samples"


def main() -> None:
    """Answers until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    while header := sys.stdin.buffer.read(4):
        data = sys.stdin.buffer.read(struct.unpack("<I", header)[0])
        sys.stdout.write(json.dumps([outcome(data), resident_kb("self")]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
