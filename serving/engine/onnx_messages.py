"""The messages of ONNX graphs, as far as the server reads and writes them, without the package onnx.

Fields that are not listed are kept when a graph is read and written again.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

FLOAT: Final = 1  # TensorProto.FLOAT
LARGEST_IR: Final = 8

_SCALARS: Final = {
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
}
# By message: field, its number, its type; a star where it is repeated.
_FIELDS: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "Model": {
        "ir_version": (1, "int64"),
        "opset_import": (8, "*Opset"),
        "graph": (7, "Graph"),
        "training_info": (20, "*Training"),
        "functions": (25, "*Function"),
    },
    "Opset": {"domain": (1, "string"), "version": (2, "int64")},
    "Training": {"initialization": (1, "Graph"), "algorithm": (2, "Graph")},
    "Function": {"node": (7, "*Node"), "attribute_proto": (11, "*Attribute")},
    "Graph": {
        "node": (1, "*Node"),
        "name": (2, "string"),
        "initializer": (5, "*Tensor"),
        "input": (11, "*Value"),
        "output": (12, "*Value"),
        "sparse_initializer": (15, "*SparseTensor"),
    },
    "Node": {
        "input": (1, "*string"),
        "output": (2, "*string"),
        "op_type": (4, "string"),
        "attribute": (5, "*Attribute"),
    },
    "Attribute": {
        "name": (1, "string"),
        "i": (3, "int64"),
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "ints": (8, "*int64"),
        "tensors": (10, "*Tensor"),
        "graphs": (11, "*Graph"),
        "type": (20, "int32"),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, "*SparseTensor"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {
        "dims": (1, "*int64"),
        "data_type": (2, "int32"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "*Entry"),
        "data_location": (14, "int32"),
    },
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "Value": {"name": (1, "string"), "type": (2, "Type")},
    "Type": {"tensor_type": (1, "TensorType")},
    "TensorType": {"elem_type": (1, "int32"), "shape": (2, "Shape")},
    "Shape": {"dim": (1, "*Dimension")},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
}


def message(name: str, /, **fields: Any) -> Any:
    """Return a new message of a type of onnx.proto, named without its ending `Proto`."""
    return _classes()[name](**fields)


def parse_model(content: bytes) -> Any:
    """Return the `ModelProto` of a file.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    model = message("Model")
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("not an ONNX graph") from error
    return model


def tensor(name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> Any:
    """Return a constant of a graph."""
    kind = FLOAT if values.dtype == np.float32 else 7
    return message("Tensor", name=name, dims=values.shape, data_type=kind, raw_data=values.tobytes())


def array(value: Any) -> NDArray[np.float32]:
    """Return the values of a float32 constant that holds them as raw bytes."""
    return np.frombuffer(value.raw_data, "<f4").reshape(value.dims)


def float_value(name: str, shape: Sequence[int | str]) -> Any:
    """Return an input or an output, float32, whose dimensions are sizes or names."""
    dims = [
        message("Dimension", dim_value=size) if isinstance(size, int) else message("Dimension", dim_param=size)
        for size in shape
    ]
    kind = message("TensorType", elem_type=FLOAT, shape=message("Shape", dim=dims))
    return message("Value", name=name, type=message("Type", tensor_type=kind))


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> Any:
    """Return a node with integer attributes."""
    listed = [
        message("Attribute", name=name, i=value, type=2)
        if isinstance(value, int)
        else message("Attribute", name=name, ints=value, type=7)
        for name, value in attributes.items()
    ]
    return message("Node", op_type=op_type, input=inputs, output=outputs, attribute=listed)


def has_external_weights(content: bytes) -> bool:
    """Return whether a graph has a tensor whose values are in another file, also in a subgraph or a function.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    return _is_external(parse_model(content))


def _is_external(part: Message) -> bool:
    if part.DESCRIPTOR.name == "Tensor":
        return part.HasField("data_location") or bool(part.external_data)  # type: ignore[attr-defined]
    return any(
        _is_external(each)
        for field, value in part.ListFields()
        if field.message_type is not None
        for each in ([value] if isinstance(value, Message) else value)
    )


@cache
def _classes() -> dict[str, Any]:
    field_of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="speakerlens/onnx_subset.proto", package="speakerlens.onnx_subset")
    for name, fields in _FIELDS.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            scalar = _SCALARS.get(kind.lstrip("*"))
            described.field.add(
                name=field,
                number=number,
                label=field_of.LABEL_REPEATED if kind.startswith("*") else field_of.LABEL_OPTIONAL,
                type=field_of.TYPE_MESSAGE if scalar is None else scalar,
                type_name=f".{file.package}.{kind.lstrip('*')}" if scalar is None else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}")) for name in _FIELDS
    }
