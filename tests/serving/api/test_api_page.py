"""docs/api.md: example bodies are messages of the contract, and Python names exist."""

import ast
import re
import shlex

import pytest
from google.protobuf import json_format, message_factory

import speakerlens as client
from speakerlens.cli import main as cli
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
METHODS = pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].methods_by_name
SENT = re.compile(r"(?:printf|-d) '(\{[^']*\})'(?:(?!\n```).)*?\$S/(\w+)", re.DOTALL)


@pytest.mark.parametrize(("body", "method"), SENT.findall(PAGE))
def test_example_body_is_a_request_of_its_call(body: str, method: str) -> None:
    request = message_factory.GetMessageClass(METHODS[method].input_type)()
    json_format.Parse(body.replace("%s", "AAAA"), request)


def test_page_has_examples() -> None:
    assert {"Identify", "GetModel"} <= {method for _, method in SENT.findall(PAGE)}


@pytest.mark.parametrize("method", METHODS)
def test_every_call_has_an_example(method: str) -> None:
    assert re.search(rf"^## .*\b{method}\b", PAGE, re.MULTILINE)
    assert re.search(rf"\$S/{method}\b", PAGE)


@pytest.mark.parametrize("line", re.findall(r"^\$ speakerlens (.*)$", PAGE, re.MULTILINE))
def test_commands_are_parsed(line: str) -> None:
    cli.parse(shlex.split(line.partition(" < ")[0]))  # ends the process where they are not


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_python_names_exist(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "speakerlens":
            assert all(hasattr(client, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "client":
            assert hasattr(client.SpeakerClient, node.attr)
