"""The deletion index of a toy run, against utterances measured alone with numpy."""

import numpy as np
import pytest
import torch

from speakerlens.training.checkpoint import Run
from speakerlens.training.evaluation.conditions import CLEAN, Condition, mixtures
from speakerlens.training.evaluation.maps.attributions import ENERGY, FUSED, log_energy
from speakerlens.training.evaluation.maps.deletion import MAPS, S4_RAW, DeletionIndices, deletion_indices, spread
from speakerlens.training.evaluation.maps.probes import Probes
from speakerlens.training.model.saliency import dominated_bins, fused, layercam

CONDITIONS = (Condition("noise", 0.0), Condition("speaker", 5.0))


@pytest.fixture(scope="module")
def found(toy_run: Run, toy_probes: Probes) -> tuple[DeletionIndices, ...]:
    return deletion_indices({"toy": toy_run.network}, toy_probes, CONDITIONS, lambda done, total: None)


def index_of(stage_map: np.ndarray, dominated: np.ndarray) -> float:
    return float(stage_map[dominated].sum() / stage_map.sum() / dominated.mean())


def test_each_utterance_has_its_own_and_its_clean_index(
    found: tuple[DeletionIndices, ...], toy_run: Run, toy_probes: Probes
) -> None:
    assert [(row.network, row.kind, row.snr_db) for row in found] == [("toy", "noise", 0.0), ("toy", "speaker", 5.0)]
    network = toy_run.network
    for row, condition in zip(found, CONDITIONS, strict=True):
        assert set(row.indices) == set(row.clean_indices) == set(MAPS)
        both = (
            list(mixtures(toy_probes.corpus, "test", toy_run.speakers, [which], 1, toy_probes.clips))
            for which in (CLEAN, condition)
        )
        for clean, mixed in zip(*both, strict=True):
            at = int(mixed.indices)
            where = dominated_bins(network.front_end, mixed.mixture.speech, mixed.mixture.interference)[0].numpy()
            assert row.areas[at] == pytest.approx(where.mean())
            for batch, indices in ((mixed, row.indices), (clean, row.clean_indices)):
                saliency = layercam(network, batch.mixture.audio, None, batch.labels)
                assert indices[FUSED][at] == pytest.approx(index_of(fused(saliency)[0].numpy(), where), rel=1e-3)
                energy = log_energy(network.front_end, batch.mixture.audio, batch.lengths)[0].numpy()
                assert indices[ENERGY][at] == pytest.approx(index_of(energy - energy.min(), where), rel=1e-3)
                if batch is mixed:
                    own = float(saliency.logits[0, batch.labels[0]])
                    assert row.ranks[at] == int((saliency.logits[0] >= own).sum())


def test_raw_map_fills_the_bins_of_its_cells() -> None:
    stage_map = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]]])
    found = spread(stage_map, torch.tensor([2]), torch.tensor([5]), 4, 6)[0]
    assert found.tolist() == [[1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 0], [3, 3, 4, 4, 4, 0], [3, 3, 4, 4, 4, 0]]
    assert S4_RAW in MAPS
