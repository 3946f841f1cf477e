"""Graphs that are cut down to some outputs, and weights that they share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import LOWEST_STAGES, ComparedJob, Job, lowest_stage
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.engine.weights import cut
from speakerlens.serving.models.reader import read_bundle
from tests.serving.harness import talk


@pytest.fixture(scope="module")
def bundle(toy_bundles: Path) -> Bundle:
    return read_bundle(toy_bundles / "da" / "1")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, Placement("cpu", 1))


def computed(graphs: Mapping[str, Any], lowest: str, job: object) -> Any:
    """The result of the graph with maps from a stage on."""
    [result] = graphs[lowest].compute(graphs[lowest].prepare([job]))
    return result


@pytest.mark.parametrize("lowest", LOWEST_STAGES)
def test_maps_of_a_cut_graph_equal_those_of_all_stages(engine: Engine, bundle: Bundle, lowest: str) -> None:
    job = Job(talk(1.3))
    compared = ComparedJob(job.audio, np.ones(bundle.embedding_size, np.float32))
    for graphs, each in ((engine.explainers, job), (engine.verifiers, compared)):
        part, whole = computed(graphs, lowest, each), computed(graphs, "s1", each)
        assert len(part.saliency) == 4 - int(lowest[1]) + 1
        for found, expected in zip(part.saliency, whole.saliency[-len(part.saliency) :], strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(part.features, whole.features)
        np.testing.assert_array_equal(part.embedding, whole.embedding)


def test_cut_graph_has_fewer_nodes_and_the_same_inputs(bundle: Bundle) -> None:
    whole = (bundle.folder / "explain.onnx").read_bytes()
    part = cut(whole, ("logits", "saliency_s4"))
    before, after = ort.InferenceSession(whole), ort.InferenceSession(part)
    assert {node.name for node in after.get_outputs()} == {"logits", "saliency_s4"}
    assert [node.name for node in after.get_inputs()] == [node.name for node in before.get_inputs()]
    assert after.get_modelmeta().custom_metadata_map == before.get_modelmeta().custom_metadata_map
    assert len(part) < len(whole)
    assert cut(whole, [node.name for node in before.get_outputs()]) is whole
    with pytest.raises(ValueError, match="not an ONNX graph"):
        cut(b"\xff\xff", ("logits",))


@pytest.mark.parametrize(
    ("stages", "lowest"),
    [
        (("fused",), "s2"),
        (("s4",), "s4"),
        (("s3", "s4"), "s2"),
        (("s4", "fused"), "s2"),
        (("s1",), "s1"),
        (("fused", "s1"), "s1"),
    ],
)
def test_cheapest_graph_with_all_stages_is_chosen(bundle: Bundle, stages: tuple[str, ...], lowest: str) -> None:
    assert lowest_stage(bundle, stages) == lowest


def test_graphs_of_a_bundle_share_weights(engine: Engine) -> None:
    owned = [set(map(id, graph._session.shared_weights)) for graph in (engine.explain, engine.verify)]
    assert owned[0] & owned[1]
    engine.reopen()
    assert owned[0].isdisjoint(map(id, engine.explain._session.shared_weights))
