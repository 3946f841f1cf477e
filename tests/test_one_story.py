"""The report and the server give the same answers and maps for the same audio."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speakerlens import SpeakerClient
from speakerlens.training.data.audio import write_audio
from speakerlens.training.evaluation.comparison.evaluate import calibrate_all
from speakerlens.training.evaluation.comparison.inputs import find_corpus, load_runs
from speakerlens.training.evaluation.maps.example import first_example
from tests.serving.harness import ServerProcess


def test_report_and_server_answer_alike(runs: dict[str, Path], server: ServerProcess, tmp_path: Path) -> None:
    loaded = load_runs(list(runs.values()), torch.device("cpu"))
    corpus = find_corpus(loaded, None)
    speakers = next(iter(loaded.values())).speakers
    networks = {name: run.network for name, run in loaded.items()}
    shown = first_example(networks, calibrate_all(networks, corpus, speakers), corpus, speakers, ["noise"])
    write_audio(tmp_path / "example.flac", shown.mixture)
    with SpeakerClient(server.ready["grpc"]) as client:
        result = client.identify(tmp_path / "example.flac", explain=True)
    for variant, answer in shown.answers.items():
        served = result[variant]
        assert served.best.speaker == answer.named.speaker
        assert served.best.probability == pytest.approx(answer.named.probability, abs=0.01)
        assert served.known == answer.known
        assert served.explanation is not None
        assert served.explanation.target_speaker == answer.named.speaker
        served_map = served.explanation.maps["fused"].values
        assert np.corrcoef(served_map.ravel(), answer.named.map.ravel())[0, 1] > 0.98
