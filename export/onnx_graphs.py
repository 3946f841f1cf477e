"""Write a bundle's ONNX graphs: standard operators, dynamic batch and length, metadata."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx.utils
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from speakerlens.export.graph import Explanation, ExportedNetwork, Prediction, Verification
from speakerlens.training.model.network import STRIDES

OPSET = 18
PREDICT, EXPLAIN, VERIFY = "predict.onnx", "explain.onnx", "verify.onnx"

# Standard operators with kernels in ONNX Runtime's CUDA provider for the types used here (its docs/OperatorKernels.md).
# An operator without one would move tensors to the CPU and back within the graph.
CUDA_OPERATORS = frozenset(
    """Abs Add And ArgMax Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Div Equal Exp Expand
    Flatten Floor Gather GatherElements GatherND Gemm Greater GreaterOrEqual Identity Less LessOrEqual Log MatMul Max
    Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sign
    Slice Softmax Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where""".split()
)

# Sizes of the traced example: a size equal to a dimension of the network could become a constant in the graph.
_BATCH, _SAMPLES = 7, 50_021

_OF_THE_COSINE = ("score", *(name for name in Verification._fields if name.startswith("saliency")))


class GraphError(Exception):
    """Raised for a graph that is not fit for a bundle; the message says why."""


class _Traced(nn.Module):
    """Explanation and verification of the same audio: one trace for all graphs of a bundle."""

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, lengths: Tensor, target: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        activations = self.network.activations(audio, lengths)
        verified = self.network.verify_activations(activations, reference)
        return (
            *self.network.explain_activations(activations, target),
            *(getattr(verified, name) for name in _OF_THE_COSINE),
        )


class _TracedEmbedder(nn.Module):
    """Verification alone, of a network without a classifier."""

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, audio: Tensor, lengths: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.verify(audio, lengths, reference))


def graph_names(classes: int) -> tuple[str, ...]:
    """Return the files of a bundle's graphs; without classes there is nothing for `explain.onnx` to explain."""
    return (PREDICT, EXPLAIN, VERIFY) if classes else (PREDICT, VERIFY)


def describe_graphs(folder: Path, classes: int, facts: Mapping[str, str]) -> None:
    """Replace the metadata of the graphs in a folder by these facts; the rest of them stays as it is."""
    for name in graph_names(classes):
        model = onnx.load(str(folder / name))
        onnx.helper.set_model_props(model, dict(facts))
        onnx.save(model, str(folder / name))


def write_graphs(network: ExportedNetwork, folder: Path, facts: Mapping[str, str]) -> None:
    """Write the graphs into a folder.

    Args:
        network: what to export.
        folder: where the files go; their names are those of `graph_names`.
        facts: written into the graphs' metadata, so that a graph without its bundle still describes itself.

    Raises:
        GraphError: a graph has operators outside the standard or without a CUDA kernel.
    """
    graphs = _graphs(network) if network.classes else _embedding_graphs(network)
    rows = [-(-network.front_end.mel_bins // stride) for stride in STRIDES]
    for name, model in graphs.items():
        _name_dimensions(model, rows)
        onnx.helper.set_model_props(model, dict(facts))
        check_graph(model, name)
        onnx.save(model, str(folder / name))


def _graphs(network: ExportedNetwork) -> dict[str, onnx.ModelProto]:
    """Return the three graphs of a network with a classifier, by their file."""
    names = [*Explanation._fields, *map(_cosine_name, _OF_THE_COSINE)]
    extractor = onnx.utils.Extractor(_trace(_Traced(network), _inputs(network), names))
    verified = [_cosine_name(name) if name in _OF_THE_COSINE else name for name in Verification._fields]
    graphs = {
        PREDICT: extractor.extract_model(["audio", "lengths"], list(Prediction._fields)),
        EXPLAIN: extractor.extract_model(["audio", "lengths", "target"], list(Explanation._fields)),
        VERIFY: extractor.extract_model(["audio", "lengths", "reference"], verified),
    }
    for name in _OF_THE_COSINE:
        _rename(graphs[VERIFY].graph, _cosine_name(name), name)
    return graphs


def _embedding_graphs(network: ExportedNetwork) -> dict[str, onnx.ModelProto]:
    """Return the two graphs of a network without a classifier, by their file."""
    inputs = _inputs(network)
    del inputs["target"]
    verify = _trace(_TracedEmbedder(network), inputs, Verification._fields)
    return {PREDICT: onnx.utils.Extractor(verify).extract_model(["audio", "lengths"], ["embedding"]), VERIFY: verify}


def check_graph(model: onnx.ModelProto, name: str, others: Collection[str] = ()) -> None:
    """Check that a graph is valid and uses only standard operators with CUDA kernels, and `others`.

    Raises:
        GraphError: it does not; the message names the operators.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"{name}: {error}") from error
    if model.functions:
        raise GraphError(f"{name}: has local functions ({', '.join(f.name for f in model.functions)})")
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    slow = sorted({node.op_type for node in model.graph.node} - CUDA_OPERATORS - {*others})
    if foreign or slow:
        raise GraphError(
            f"{name}: operators that are not standard or have no CUDA kernel: {', '.join(foreign or slow)}"
        )


def check_graph_file(folder: Path, name: str, others: Collection[str] = ()) -> None:
    """Do so for a file of a bundle.

    Raises:
        GraphError: as `check_graph`, or the file is no graph.
    """
    try:
        model = onnx.load(str(folder / name))
    except DecodeError as error:
        raise GraphError(f"{name}: {error}") from error
    check_graph(model, name, others)


def _inputs(network: ExportedNetwork) -> dict[str, Tensor]:
    """Return the inputs of the traced example by name, of all graphs."""
    generator = torch.Generator().manual_seed(0)
    return {
        "audio": 0.1 * torch.randn(_BATCH, _SAMPLES, generator=generator),
        "lengths": torch.tensor([_SAMPLES - 5003 * row for row in range(_BATCH)]),
        "target": torch.full((_BATCH,), -1),
        "reference": torch.randn(_BATCH, network.embed.out_features, generator=generator),
    }


def _trace(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the graph of a module with named inputs and outputs, with dynamic batch and length.

    By the exporter that records operators as they run: `torch.export` and its decompositions take thirty times as long.
    """
    content = io.BytesIO()
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            content,  # type: ignore[arg-type]  # which this exporter takes
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)} | {"audio": {0: "batch", 1: "samples"}},
        )
    model: onnx.ModelProto = onnx.load_from_string(content.getvalue())
    return model


def _cosine_name(output: str) -> str:
    """Return the name in the common graph of an output of `verify`; `explain` has maps of the same names."""
    return f"cosine_{output}"


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename an output of a graph; nothing in the graph may have the new name."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for output in graph.output:
        output.name = new if output.name == old else output.name


def _name_dimensions(model: onnx.ModelProto, rows: Sequence[int]) -> None:
    """Name the dynamic dimensions of the outputs, in place of the exporter's; `rows` are those of each stage's map."""
    for output in model.graph.output:
        dimensions = output.type.tensor_type.shape.dim
        if len(dimensions) == 3:
            is_map = output.name != "features"
            dimensions[1].dim_value = rows[int(output.name[-1]) - 1] if is_map else rows[0]
            dimensions[2].dim_param = f"columns_{output.name[-2:]}" if is_map else "frames"
    # The shapes of inner values use the exporter's names for the same dimensions.
    del model.graph.value_info[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
