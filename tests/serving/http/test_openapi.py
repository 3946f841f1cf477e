"""The description of the calls: complete, every reference resolved, and texts that a page can wrap."""

import json
import re

from speakerlens.serving.http.openapi import SINGLE, STREAMS, description

DESCRIBED = description()


def test_every_address_is_described() -> None:
    for each in SINGLE:
        operation = DESCRIBED["paths"][each.path][each.method.lower()]
        assert operation["description"]
        assert operation["responses"]["200"]
    assert {each.path for each in STREAMS} <= set(DESCRIBED["paths"])


def test_every_reference_is_resolved() -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DESCRIBED)))
    assert references
    assert references <= set(DESCRIBED["components"]["schemas"])


def test_texts_break_only_between_paragraphs_and_entries() -> None:
    text = DESCRIBED["paths"]["/v1/identify"]["post"]["description"]
    entries = [line.split()[0] for line in text.splitlines() if re.match("[A-Z_]{4,} ", line)]
    assert entries[:2] == ["INVALID_ARGUMENT", "NOT_FOUND"]
    paragraphs = text.split("\n\n")
    assert [len(each.splitlines()) for each in paragraphs] == [1, len(entries), 1]
