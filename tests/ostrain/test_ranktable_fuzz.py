"""Nothing a file or a node may say makes a traceback, a hang, or a table that HCCL refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostrain.errors import OstrainError
from ostrain.ranktable import hccn, npu_smi
from ostrain.ranktable.check import Expected, check, check_data
from ostrain.ranktable.convert import convert, stringified
from ostrain.ranktable.devices import device_list
from ostrain.ranktable.document import Document, decoded, parse
from ostrain.ranktable.explain import describe, starting, summary
from ostrain.ranktable.facts import node_facts
from ostrain.ranktable.findings import as_json, rendered
from ostrain.ranktable.locate import places
from ostrain.ranktable.make import Wanted, make
from ostrain.ranktable.merge import input_errors, merge
from ostrain.ranktable.products import PRODUCTS
from ostrain.ranktable.text import file_name, table_text
from ostrain.spec.document import DocumentError
from ostrain.spec.problems import Source
from tests.ostrain.ranktable_helpers import GOLDEN, SAMPLES

quick = settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck), derandomize=True)
TEXTS = [path.read_text() for path in sorted(SAMPLES.glob("*.json"))]
TABLES = [json.loads(text) for text in TEXTS]
TRANSCRIPTS = [path.read_text() for path in sorted(GOLDEN.glob("facts*/*.txt"))]


def keys_of(value: Any) -> Iterator[str]:
    """Every key in a table."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from keys_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item)


KEYS = sorted({key for table in TABLES for key in keys_of(table)})
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 16), st.integers(0, 16).map(str),
    st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from(["1.0", "1.2", "2.0", "completed", "10.0.0.1", "2001:db8::1", "EID", ""]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=25,
)
expectations = st.builds(
    Expected,
    st.none() | st.sampled_from(list(PRODUCTS.values())),
    st.none() | st.integers(1, 16),
    st.none() | st.integers(0, 128),
)


@st.composite
def changed_tables(draw: st.DrawFn) -> Any:
    """A sample with a few values replaced, removed, doubled or moved."""
    table = json.loads(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 4))):
        holder: Any = table
        for _ in range(draw(st.integers(0, 8))):
            inner = [
                item
                for item in (holder.values() if isinstance(holder, dict) else holder)
                if item and isinstance(item, (dict, list))
            ]
            if not inner:
                break
            holder = draw(st.sampled_from(inner))
        places_in = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not places_in:
            continue
        place = draw(st.sampled_from(places_in))
        action = draw(st.sampled_from(["replace", "remove", "double"]))
        if action == "remove":
            del holder[place]
        elif action == "double" and isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[place])))
        else:
            holder[place] = draw(values)
    return table


def use(document: Document, expected: Expected) -> None:
    """Everything the commands do with a table."""
    report = check(document, expected)
    for finding in report.findings.all:
        json.dumps(as_json(finding, document))
    "\n".join(rendered(report.findings.all, document)).encode()
    if report.kind is not None:
        describe(report, document.data)
        summary(report) if report.good else None
        starting(report)
    mended = stringified(document.data)
    if isinstance(mended, dict) and check_data(mended).good:
        for version in ("1.0", "1.2", "2.0"):
            with contextlib.suppress(OstrainError):
                file_name(convert(mended, version))
    if isinstance(document.data, dict) and not input_errors(document):
        merged = merge([document, document])
        "\n".join(rendered(merged.report.findings.all, merged)).encode()


@quick
@given(st.one_of(values, changed_tables()), expectations)
def test_any_json_is_checked_and_used(data: Any, expected: Expected) -> None:
    use(parse(Source("t.json", json.dumps(data, indent=1))), expected)


@quick
@given(st.sampled_from(TEXTS), st.data())
def test_any_bytes_are_a_table_or_a_problem_at_a_place(text: str, data: st.DataObject) -> None:
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=4))
    try:
        document = parse(decoded("t.json", bytes(raw)))
    except DocumentError as error:
        assert error.problems[0].render().startswith("t.json:")
        return
    use(document, Expected())


@quick
@given(values)
def test_places_are_where_the_values_stand(data: Any) -> None:
    text = json.dumps(data, indent=2)
    found = places(text)

    def walk(value: Any, path: tuple[str | int, ...]) -> None:
        start, end = found.values[path]
        if isinstance(value, (dict, list)):
            assert text[start] == ("{" if isinstance(value, dict) else "[")
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                walk(item, (*path, key))
        else:
            assert json.loads(text[start:end]) == value

    walk(data, ())


@quick
@given(st.text(max_size=400))
def test_any_output_is_read(text: str) -> None:
    hccn.parse_conf(text)
    hccn.parse_tool(text)
    hccn.parse_gateway(text)
    npu_smi.parse_info(text)
    npu_smi.parse_map(text)
    npu_smi.parse_pod(text)
    npu_smi.parse_list(text)
    with contextlib.suppress(OstrainError):
        device_list(text)


@quick
@given(st.lists(st.sampled_from(TRANSCRIPTS), min_size=1, max_size=3), st.data())
def test_any_transcripts_make_a_good_table_or_complaints(chosen: list[str], data: st.DataObject) -> None:
    texts = []
    for text in chosen:
        lines = text.split("\n")
        for _ in range(data.draw(st.integers(0, 5))):
            place = data.draw(st.integers(0, len(lines) - 1))
            lines[place] = data.draw(st.text(max_size=30) | st.sampled_from(lines))
        texts.append("\n".join(lines))
    version = data.draw(st.sampled_from(["", "1.0", "1.2", "2.0"]))
    nodes = [node_facts(f"n{number}", text) for number, text in enumerate(texts)]
    made = make(nodes, Wanted(version, ip_version=data.draw(st.sampled_from([4, 6])), backup=data.draw(st.booleans())))
    "\n".join(map(str, made.complaints))
    if made.data is None:
        assert any(complaint.level == "error" for complaint in made.complaints)
    else:
        document = parse(Source("t.json", table_text(made.data)))
        assert check(document).good and file_name(made.data).endswith(".json")


@pytest.mark.parametrize("text", ["|" * 20000, "a:" * 20000, ":" * 20000, " " * 20000 + "|", "1" * 20000, "[" * 9000,
                                  "x@" * 9000, "$ " * 9000, "- " * 9000])  # fmt: skip
def test_long_lines_take_no_time(text: str) -> None:
    hccn.parse_conf(text)
    hccn.parse_tool(text)
    hccn.parse_gateway(text)
    npu_smi.parse_info(text)
    npu_smi.parse_map(text)
    npu_smi.parse_pod(text)
    node_facts("n", text)
    with contextlib.suppress(DocumentError):
        parse(Source("t.json", text))
