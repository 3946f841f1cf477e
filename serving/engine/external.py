"""Find weights that an ONNX graph keeps in files of their own, without the package onnx."""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

# The messages of onnx.proto on every way to a tensor: field, its number, its message; a star where it is repeated.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph"), "training_info": (20, "*Training"), "functions": (25, "*Function")},
    "Training": {"initialization": (1, "Graph"), "algorithm": (2, "Graph")},
    "Function": {"node": (7, "*Node"), "attribute_proto": (11, "*Attribute")},
    "Graph": {"node": (1, "*Node"), "initializer": (5, "*Tensor"), "sparse_initializer": (15, "*SparseTensor")},
    "Node": {"attribute": (5, "*Attribute")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, "*Tensor"),
        "graphs": (11, "*Graph"),
        "sparse_tensor": (22, "SparseTensor"),
        "sparse_tensors": (23, "*SparseTensor"),
    },
    "SparseTensor": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {"external_data": (13, "*Entry"), "data_location": (14, "")},
    "Entry": {},
}


def has_external_weights(content: bytes) -> bool:
    """Return whether a graph has a tensor whose values are in another file, also in a subgraph or a function.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    model = _model_class()()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError("not an ONNX graph") from error
    return _is_external(model)


def _is_external(message: Message) -> bool:
    if message.DESCRIPTOR.name == "Tensor":
        return bool(message.ListFields())  # its other fields are not in FIELDS
    return any(
        _is_external(each)
        for field, value in message.ListFields()
        for each in ([value] if isinstance(value, Message) else value)
    )


@cache
def _model_class() -> Any:
    field_of = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="speakerlens/onnx_subset.proto", package="speakerlens.onnx_subset")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            message.field.add(
                name=field,
                number=number,
                label=field_of.LABEL_REPEATED if kind.startswith("*") else field_of.LABEL_OPTIONAL,
                type=field_of.TYPE_MESSAGE if kind else field_of.TYPE_INT32,
                type_name=f".{file.package}.{kind.lstrip('*')}" if kind else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Model"))
