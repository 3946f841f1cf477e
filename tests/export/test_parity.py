"""Verification: which utterance is in which batch, and that a wrong map is found however few utterances have one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from speakerlens.export import parity
from speakerlens.export.graph import ExportedNetwork
from speakerlens.export.onnx_graphs import EXPLAIN, write_graphs
from speakerlens.export.runtimes import Case, GraphNetwork, Outputs, Runtime, load_runtimes, part_of_graph, run_batch
from speakerlens.export.synthetic import synthetic_voice
from speakerlens.export.torchscript import write_torchscript
from speakerlens.training.config import HeadConfig, NetworkConfig
from speakerlens.training.model.network import SpeakerNetwork


@pytest.mark.parametrize("utterances", [1, 2, 5, 12, 20])
def test_every_utterance_is_in_one_batch(utterances: int) -> None:
    batches = list(parity.plan(utterances))
    assert [index for batch in batches for index in batch] == list(range(utterances))
    assert {len(batch) for batch in batches} <= {1, 2, 3, 8}
    if utterances == 20:
        assert sorted(map(len, batches)) == [1, 1, 1, 3, 3, 3, 8]


@pytest.fixture(scope="module")
def network() -> SpeakerNetwork:
    torch.manual_seed(0)
    network = SpeakerNetwork(NetworkConfig((1, 1, 1, 1), 3, 8, 24), HeadConfig(), 5).train()
    for _ in range(3):
        network(0.1 * torch.randn(4, 8000))  # so that batch normalisation has statistics
    return network.eval()


@pytest.fixture(scope="module")
def folder(network: SpeakerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    exported = ExportedNetwork(network)
    write_graphs(exported, folder, {})
    write_torchscript(exported, folder)
    return folder


def spoilt(name: str, row: int, factor: float) -> object:
    """Return a `run_batch` whose output `name` of one row of the largest batches is too large."""

    def run(runtime: Runtime, cases: Sequence[Case]) -> list[Outputs]:
        answers = run_batch(runtime, cases)
        if len(cases) == 8 and name in answers[row]:
            answers[row][name] = answers[row][name] * np.float32(factor)
        return answers

    return run


def test_right_graphs_hold_and_figures_cover_all(network: SpeakerNetwork, folder: Path) -> None:
    steps = []
    found = parity.verify(network, folder, [synthetic_voice(i) for i in range(20)], lambda: steps.append(1), workers=2)
    assert found["holds"], parity.failures(found)
    assert len(steps) == parity.steps(20, 5)
    assert {figure["batch"] for figure in found["figures"]} == {1, 3, 8}
    assert {figure["seconds"] for figure in found["figures"]} == set(parity.SECONDS)


@pytest.mark.parametrize(("name", "factor"), [("saliency_s1", 1.01), ("embedding", 1.001), ("features", 1.01)])
def test_one_wrong_row_of_a_batch_fails(
    name: str, factor: float, network: SpeakerNetwork, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "run_batch", spoilt(name, 5, factor))
    found = parity.verify(network, folder, [synthetic_voice(i) for i in range(12)])
    failed = [figure for figure in found["figures"] if not figure["holds"]]
    assert {figure["output"] for figure in failed} == {name}
    assert {figure["batch"] for figure in failed} == {8}
    assert EXPLAIN in {figure["runtime"] for figure in failed}
    assert f"do not hold; the worst is {name} of" in parity.failures(found)


def test_a_network_by_its_graph_answers_as_in_torch(network: SpeakerNetwork, folder: Path) -> None:
    by_graph = GraphNetwork(network, folder, threads=2)
    audio, lengths = 0.1 * torch.randn(3, 20_000), torch.tensor([20_000, 9_000, 14_321])
    with torch.inference_mode():
        for given in (lengths, None):
            for one, other in zip(by_graph(audio, given), network(audio, given), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_part_of_a_graph_answers_as_the_whole(folder: Path) -> None:
    outputs = ("explained", "features", "saliency_s2", "saliency_s4")
    case = Case(torch.from_numpy(synthetic_voice(0)[:16_000]), target=2)
    [part] = run_batch(part_of_graph(folder / EXPLAIN, EXPLAIN, outputs, threads=1), [case])
    [whole] = run_batch(load_runtimes(folder, 5)[EXPLAIN], [case])
    assert set(part) == set(outputs)
    for name in outputs:
        np.testing.assert_array_equal(part[name], whole[name])
