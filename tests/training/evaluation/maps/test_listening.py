"""Faithfulness by sound of a toy run, beside one utterance at a time."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from speakerlens.measures.listening import kept
from speakerlens.training.checkpoint import Run
from speakerlens.training.evaluation.conditions import CLEAN, Condition, mixtures
from speakerlens.training.evaluation.maps.attributions import FUSED, attribute
from speakerlens.training.evaluation.maps.listening import LISTENED_MAPS, _unit, listened_maps
from speakerlens.training.evaluation.maps.probes import Probes


def test_measures_are_those_of_the_sounds_one_by_one(toy_run: Run, toy_probes: Probes) -> None:
    network, condition = toy_run.network, Condition("noise", 5.0)
    found = listened_maps({"toy": network}, toy_probes, [CLEAN, condition], lambda done, total: None)
    assert [(row.kind, row.method) for row in found] == [
        (each.kind, method) for each in (CLEAN, condition) for method in LISTENED_MAPS
    ]
    [row] = [row for row in found if row.kind == condition.kind and row.method == FUSED]
    centres = np.array(network.front_end.centres_hz())

    def probabilities(samples: NDArray[np.float32]) -> NDArray[np.float64]:
        with torch.no_grad():
            features, frames = network.front_end(torch.from_numpy(samples)[None])
            logits = network.logits(network.encoder(features, frames, False).embedding)
        return np.asarray(logits.double().softmax(dim=1)[0])

    drops, faithful, same = [], [], []
    for batch in mixtures(toy_probes.corpus, "test", toy_run.speakers, [condition], 1, toy_probes.clips):
        samples = batch.mixture.audio[0].numpy()
        features, frames = network.front_end(batch.mixture.audio)
        saliency = attribute(network, features, frames, False).maps[FUSED][0].numpy()
        part = kept(samples, saliency, centres, 400, 160)
        whole, kept_part, rest = map(probabilities, (samples, part, samples - part))
        label = whole.argmax()
        drops.append(max(0, whole[label] - kept_part[label]) / whole[label])
        faithful.append(whole[label] - rest[label])
        same.append(kept_part.argmax() == label)
    assert row.measures.average_drop == pytest.approx(np.mean(drops), abs=1e-3)
    assert row.measures.faithfulness == pytest.approx(np.mean(faithful), abs=1e-3)
    assert row.measures.input_fidelity == pytest.approx(np.mean(same))


def test_energies_become_maps() -> None:
    energies = np.array([[-8.0, 2.0], [4.0, 0.0]], np.float32)
    np.testing.assert_allclose(_unit(energies), [[0, 10 / 12], [1, 8 / 12]], rtol=1e-6)
    inside = np.array([[0.0, 0.4]], np.float32)
    np.testing.assert_array_equal(_unit(inside), inside)
