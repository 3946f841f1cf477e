"""Find weights that an ONNX graph keeps in files of their own, without the package onnx."""

from google.protobuf.message import Message

from speakerlens.serving.engine.onnx_messages import parse_model


def has_external_weights(content: bytes) -> bool:
    """Return whether a graph has a tensor whose values are in another file, also in a subgraph or a function.

    Raises:
        ValueError: `content` is not an ONNX graph.
    """
    return _is_external(parse_model(content))


def _is_external(message: Message) -> bool:
    if message.DESCRIPTOR.name == "Tensor":
        return message.HasField("data_location") or bool(message.external_data)  # type: ignore[attr-defined]
    return any(
        _is_external(each)
        for field, value in message.ListFields()
        if field.message_type is not None
        for each in ([value] if isinstance(value, Message) else value)
    )
