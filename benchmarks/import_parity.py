"""How far an imported network is from its torch reference, and how long a folder takes to become a bundle.

    python -m benchmarks.import_parity [--utterances 34] [--out benchmarks/results/import_parity.json]

A folder of the shape of pyannote/wespeaker-voxceleb-resnet34-LM is written with random weights and added by the command
that users type. The embeddings of its graph are compared with a network in plain torch that shares no code with this
project, on features by kaldi-native-fbank, for speech-like signals of three lengths. With --speech FOLDER they are
recordings of that folder.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from speakerlens.export.synthetic import synthetic_voice
from speakerlens.training.data.audio import SAMPLE_RATE, read_sound
from tests.training.pyannote_files import write_pyannote
from tests.training.wespeaker_reference import ReferenceResNet, make

SECONDS = (1.0, 3.0, 6.0)
NAME = "wespeaker-voxceleb-resnet34-LM"
Audio = NDArray[np.float32]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=34, help="of each length (default: %(default)s)")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="recordings in place of synthetic voices")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    arguments = parser.parse_args()
    files = sorted(arguments.speech.rglob("*.flac")) if arguments.speech else []
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.utterances, files)
    text = json.dumps({**environment(), **found}, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def measure(folder: Path, utterances: int, files: list[Path]) -> dict[str, Any]:
    """Return the figures of one network, imported below `folder`."""
    reference = make((3, 4, 6, 3), False, classes=0, width=32, embedding=256)
    network = write_pyannote(folder / NAME, reference)
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "speakerlens", "models", "add", str(network), "--bundles", str(folder / "bundles")]
    subprocess.run(command, check=True)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "parameters": sum(each.numel() for each in reference.parameters()),
        "folder_to_bundle_s": round(time.monotonic() - started, 1),
        "folder_to_bundle_cpu_s": round(spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime, 1),
        "signals": "recordings" if files else "synthetic voices",
        "lengths": compare(folder / "bundles" / NAME.lower() / "1", reference, utterances, files),
    }


def compare(bundle: Path, reference: ReferenceResNet, utterances: int, files: list[Path]) -> list[dict[str, Any]]:
    """Return for each length the least cosine and the greatest relative error of `utterances` embeddings."""
    session = ort.InferenceSession(str(bundle / "predict.onnx"), providers=["CPUExecutionProvider"])
    rows = []
    for seconds in SECONDS:
        cosines, errors = [], []
        for index in range(utterances):
            audio = signal(index, seconds, files)
            feeds = {"audio": audio[None], "lengths": np.array([len(audio)])}
            found = torch.from_numpy(session.run(["embedding"], feeds)[0][0])
            expected = reference.embed(audio)
            cosines.append(float(torch.nn.functional.cosine_similarity(found, expected, dim=0)))
            errors.append(float((found - expected).norm() / expected.norm()))
        rows.append(
            {
                "seconds": seconds,
                "utterances": utterances,
                "least_cosine": min(cosines),
                "greatest_relative_error": max(errors),
            }
        )
    return rows


def signal(index: int, seconds: float, files: list[Path]) -> Audio:
    """Return an utterance, float32 [samples] at 16 kHz, cut or repeated to about its seconds."""
    length = round(seconds * SAMPLE_RATE) - 37 * index
    whole = read_sound(files[index * len(files) // 100 % len(files)], 0.0, 60.0) if files else synthetic_voice(index)
    return np.resize(whole, length).astype(np.float32)


if __name__ == "__main__":
    main()
