"""Cut a graph down to the nodes that some of its outputs need: ONNX Runtime computes every node of a graph."""

from collections.abc import Callable, Collection
from typing import Any

from speakerlens.serving.engine.onnx_messages import parse_model


def cut(content: bytes, outputs: Collection[str]) -> bytes:
    """Return a graph with these outputs alone, those of them that it has; its inputs stay.

    The nodes that remain are unchanged, so that they compute the same numbers.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    model = parse_model(content)
    if {value.name for value in model.graph.output} <= set(outputs):
        return content
    cut_graph(model.graph, outputs)
    left: bytes = model.SerializeToString()
    return left


def cut_graph(graph: Any, outputs: Collection[str]) -> None:
    """Do so in place, to a `GraphProto`."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    waiting = [value.name for value in graph.output if value.name in outputs]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            waiting += [*makers[name].input, *_outer_names(makers[name])]
    _keep(graph.output, lambda value: value.name in outputs)
    _keep(graph.node, lambda node: bool(needed.intersection(node.output)))
    _keep(graph.initializer, lambda tensor: tensor.name in needed)


def _outer_names(node: Any) -> list[str]:
    """Return what the subgraphs of a node may take from outside: the inputs of their nodes."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [
        name
        for graph in graphs
        for inner in graph.node
        for name in [*inner.input, *_outer_names(inner), *(value.name for value in graph.output)]
    ]


def _keep(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    """Leave only the wanted elements of a repeated field."""
    for index in reversed(range(len(repeated))):
        if not wanted(repeated[index]):
            del repeated[index]
