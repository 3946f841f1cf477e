"""Read ModelInfer requests: every name, type, shape and size is checked before a value is read."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens.protos.inference import inference_pb2 as pb
from speakerlens.serving.api.inference_messages import (
    ANY,
    AUDIO,
    DEFAULT_LEVEL,
    DEFAULT_OUTPUTS,
    DTYPES,
    EMBEDDING,
    INPUTS,
    LENGTHS,
    PRIORITY_LEVELS,
    PROBABILITIES,
    TARGET,
    Tensor,
    is_map,
    outputs,
)
from speakerlens.serving.bundle import SAMPLE_RATE, Bundle
from speakerlens.serving.engine.graphs import PREDICTED
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    listed,
    quoted,
)

# Field of a datatype's values where they are not raw.
CONTENTS = {"FP32": "fp32_contents", "INT64": "int64_contents"}
# The parameter of an output that asks for its best classes by name, an extension of Triton's.
CLASSIFICATION = "classification"
# Values copied at a time: all at once, the copy would hold the interpreter's lock for hundreds of milliseconds.
VALUES_AT_ONCE = 65_536


@dataclass(frozen=True)
class Limits:
    """Most rows of a request and samples of a row."""

    rows: int
    samples: int


@dataclass(frozen=True)
class InferRequest:
    """A ModelInfer request.

    Attributes:
        audio: float32 [rows, samples], values not checked yet.
        lengths: valid samples of each row, int64 [rows].
        targets: label to explain, or PREDICTED, of each row, int64 [rows].
        outputs: names, in the order asked.
        classes: number of best classes to name instead of the values, by output.
        deadline: on the clock of `time.monotonic`, None without one.
        priority: of all rows.
    """

    audio: NDArray[np.float32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    outputs: tuple[str, ...]
    classes: Mapping[str, int]
    deadline: float | None
    priority: Priority

    @property
    def explains(self) -> bool:
        """Return whether a map is asked for."""
        return any(is_map(name) for name in self.outputs)


def infer_request_of(
    request: pb.ModelInferRequest, bundle: Bundle, limits: Limits, deadline: float | None
) -> InferRequest:
    """Read a request to the model of `bundle`; `deadline` is that of the call.

    Raises:
        InvalidArgumentError: a field is invalid; the message names it.
        NotFoundError: a target is no label of the model.
        FailedPreconditionError: the model has no classifier, and more than its embedding is asked for.
    """
    deadline, priority = _schedule(request, deadline)
    wanted, classes = _outputs(request.outputs, bundle)
    values = _inputs(request, limits)
    audio = values[AUDIO]
    rows, samples = audio.shape
    lengths = values.get(LENGTHS, np.full((rows, 1), samples, np.int64))[:, 0]
    targets = values.get(TARGET, np.full((rows, 1), PREDICTED, np.int64))[:, 0]
    for row in np.flatnonzero((lengths < 1) | (lengths > samples)):
        raise _invalid(f"inputs.{LENGTHS}, row {row}: {lengths[row]}; give 1 to {samples}, the samples of a row")
    for row in np.flatnonzero((targets < PREDICTED) | (targets >= len(bundle.speakers))):
        raise NotFoundError(
            Reason.UNKNOWN_SPEAKER,
            f"inputs.{TARGET}, row {row}: no speaker {targets[row]}; {bundle.name} has 0 to "
            f"{len(bundle.speakers) - 1}, and {PREDICTED} is the one it predicts",
        )
    return InferRequest(audio, lengths, targets, wanted, classes, deadline, priority)


def _schedule(request: pb.ModelInferRequest, deadline: float | None) -> tuple[float | None, Priority]:
    level, microseconds = (_number(request.parameters, name) for name in ("priority", "timeout"))
    if "sequence_id" in request.parameters:
        raise _invalid("parameters.sequence_id: the models are stateless; leave it out")
    if level > PRIORITY_LEVELS:
        raise _invalid(f"parameters.priority: {level}; give 1 (interactive), 2 (bulk), or 0 for {DEFAULT_LEVEL}")
    if microseconds:
        own = time.monotonic() + microseconds / 1e6
        deadline = own if deadline is None else min(deadline, own)
    return deadline, Priority.BULK if level == PRIORITY_LEVELS else Priority.INTERACTIVE


def _number(parameters: Any, name: str, where: str = "parameters") -> int:
    """Return a parameter that is a whole number, 0 if it is missing."""
    if name not in parameters:
        return 0
    parameter = parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, choice) if choice in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise _invalid(f"{where}.{name}: give a whole number of 0 or more, as int64_param or uint64_param")
    return int(value)


def _outputs(requested: Sequence[Any], bundle: Bundle) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the outputs asked for, and of which the best classes are asked for, and how many."""
    names = [tensor.name for tensor in outputs(bundle)]
    classes: dict[str, int] = {}
    if not bundle.has_classifier and (not requested or any(output.name not in names for output in requested)):
        raise FailedPreconditionError(
            Reason.NO_CLASSIFIER,
            f"outputs: {bundle.name} has no classifier and names no speakers; ask for its {EMBEDDING} alone, or enrol "
            "your speakers and use Search of speakerlens.v1",
        )
    for index, output in enumerate(requested):
        where = f"outputs[{index}]"
        if output.name not in names:
            raise _invalid(f"{where}.name: no output {quoted(output.name)}; there are {listed(names)}")
        if "shared_memory_region" in output.parameters:
            raise _invalid(f"{where}.parameters.shared_memory_region: not offered; outputs come as raw tensors")
        count = _number(output.parameters, CLASSIFICATION, f"{where}.parameters")
        if count and output.name != PROBABILITIES:
            raise _invalid(f"{where}.parameters.{CLASSIFICATION}: only {PROBABILITIES} has classes, not {output.name}")
        if count:
            classes[output.name] = min(count, len(bundle.speakers))
    wanted = tuple(output.name for output in requested)
    if len(set(wanted)) < len(wanted):
        raise _invalid("outputs: an output is asked for twice")
    return wanted or DEFAULT_OUTPUTS, classes


def _inputs(request: pb.ModelInferRequest, limits: Limits) -> dict[str, NDArray[Any]]:
    known = {tensor.name: tensor for tensor in INPUTS}
    found: dict[str, tuple[int, pb.ModelInferRequest.InferInputTensor]] = {}
    for index, given in enumerate(request.inputs):
        if given.name not in known:
            raise _invalid(f"inputs[{index}].name: no input {quoted(given.name)}; there are {listed(known)}")
        if given.name in found:
            raise _invalid(f"inputs[{index}]: {given.name} is given twice")
        found[given.name] = index, given
    if AUDIO not in found:
        raise _invalid(f"inputs: no {AUDIO}; send it as FP32 {known[AUDIO].form}")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise _invalid(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; give one for each, or none")
    _check_audio(found[AUDIO][1], limits)
    rows = found[AUDIO][1].shape[0]
    values: dict[str, NDArray[Any]] = {}
    for name, (index, given) in found.items():
        _check_form(known[name], given)
        if given.shape[0] != rows:
            raise _invalid(f"inputs.{name}.shape: a batch of {given.shape[0]}, but of {rows} in {AUDIO}")
        values[name] = _raw(known[name], given, index, raw[index]) if raw else _typed(known[name], given)
    return values


def _check_audio(given: pb.ModelInferRequest.InferInputTensor, limits: Limits) -> None:
    _check_form(INPUTS[0], given)
    rows, samples = given.shape
    if rows > limits.rows:
        raise _invalid(f"inputs.{AUDIO}.shape: a batch of {rows}; the largest is {limits.rows}")
    if samples > limits.samples:
        raise InvalidArgumentError(
            Reason.TOO_LONG,
            f"inputs.{AUDIO}.shape: {samples} samples; the most are {limits.samples}, which are "
            f"{limits.samples / SAMPLE_RATE:g} s",
        )


def _check_form(tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor) -> None:
    where, shape = f"inputs.{tensor.name}", given.shape
    if "shared_memory_region" in given.parameters:
        raise _invalid(f"{where}.parameters.shared_memory_region: there is no shared memory here; send the values")
    if given.datatype != tensor.datatype:
        raise _invalid(f"{where}.datatype: {quoted(given.datatype)}; give {tensor.datatype}")
    fits = len(shape) == 1 + len(tensor.dims) and all(
        size == wanted if wanted != ANY else size > 0 for size, wanted in zip(shape[1:], tensor.dims, strict=True)
    )
    if not fits or shape[0] < 1:
        raise _invalid(f"{where}.shape: {listed(shape)}; give {tensor.form}, each 1 or more")


def _raw(tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor, index: int, data: bytes) -> NDArray[Any]:
    if given.HasField("contents"):
        raise _invalid(f"inputs.{tensor.name}.contents: raw_input_contents has the values already; send one of both")
    expected = math.prod(given.shape) * tensor.item_bytes
    if len(data) != expected:
        raise _invalid(
            f"raw_input_contents[{index}]: {len(data)} bytes; {tensor.name}, {tensor.datatype} of shape "
            f"[{listed(given.shape)}] has {expected}"
        )
    return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(given.shape)


def _typed(tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    field = CONTENTS[tensor.datatype]
    others = [descriptor.name for descriptor, _ in given.contents.ListFields() if descriptor.name != field]
    if others:
        raise _invalid(f"inputs.{tensor.name}.contents.{others[0]}: {tensor.datatype} values belong into {field}")
    values = getattr(given.contents, field)
    if len(values) != math.prod(given.shape):
        raise _invalid(
            f"inputs.{tensor.name}.contents.{field}: {len(values)} values; the shape [{listed(given.shape)}] has "
            f"{math.prod(given.shape)}"
        )
    array = np.empty(len(values), DTYPES[tensor.datatype])
    for start in range(0, len(values), VALUES_AT_ONCE):
        array[start : start + VALUES_AT_ONCE] = values[start : start + VALUES_AT_ONCE]
    return array.reshape(given.shape)


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(Reason.ARGUMENT, message)
