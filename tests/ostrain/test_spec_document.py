"""Located YAML: types, places, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostrain.spec.document import DocumentError, find, key_mark, load_document, parse_mapping, plain, value_mark
from ostrain.spec.problems import Source


def read(text: str) -> object:
    return plain(parse_mapping(Source("f", text)))


def refused(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_mapping(Source("f.yaml", text))
    assert len(caught.value.problems) == 1
    return caught.value.problems[0].render()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("2.5e+3", 2500.0), (".5", 0.5), ("-3", -3), ("0x10", 16), ("1_000", 1000),
        ("'1e-4'", "1e-4"), ("9:16", "9:16"), ("2026-01-31", "2026-01-31"), ("on", True), ("No", False),
        ("'on'", "on"), ("~", None), ("null", None), ("", None), ("e5", "e5"), ("=", "="), ("08", "08"), ("0", 0),
        ("30m", "30m"), ("55GB", "55GB"), ("[1, [2, a]]", [1, [2, "a"]]), ("{x: {y: 1}}", {"x": {"y": 1}}),
    ],
)  # fmt: skip
def test_values_have_the_type_a_reader_expects(text: str, value: object) -> None:
    result = read(f"k: {text}")["k"]  # type: ignore[index]
    assert result == value and type(result) is type(value)


def test_keys_are_the_text_as_written() -> None:
    assert read("on: 1\n51: 2\nnull: 3\n1.50: 4\n") == {"on": 1, "51": 2, "null": 3, "1.50": 4}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1", "stands twice in this mapping (first in line 1)"),
        ("a: {x: 1, x: 2}\n", "f.yaml:1:11", "'x' stands twice"),
        ("a: 010\n", "f.yaml:1:4", 'write 10 or "010"'),
        ("a: .inf\n", "f.yaml:1:4", "no finite number"),
        ("a: 1e999\n", "f.yaml:1:4", "no finite number"),
        ("a: !!python/object:os.system x\n", "f.yaml:1:4", "tag"),
        ("a: !mine {b: 1}\n", "f.yaml:1:4", "the tag !mine is not used here"),
        ("? [a]\n: 1\n", "f.yaml:1:3", "a key is a word"),
        ("a: b: c\n", "f.yaml:1:5", "needs quotes"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2", "not YAML"),
        ("a:\n\tb: 1\n", "f.yaml:2:1", "a tab cannot indent YAML"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1", "one document"),
        ("- a\n", "f.yaml:1:1", "is a list; a mapping"),
        ("word\n", "f.yaml:1:1", "is a single value; a mapping"),
        ("", "f.yaml:1:1", "is empty"),
        ("# nothing but a comment\n", "f.yaml:1:1", "is empty"),
        ("a: &x [*x]\n", "f.yaml:1:4", "never ends"),
        ("a: *nobody\n", "f.yaml:1:4", "undefined alias"),
        ("a: b\x07c\n", "f.yaml:1:5", "U+0007"),
        (b"a: '\\udc80'\n".decode("unicode_escape"), "f.yaml:1:5", "U+DC80"),
    ],
)
def test_what_is_refused_names_its_place(text: str, place: str, words: str) -> None:
    rendered = refused(text)
    assert rendered.startswith(f"{place}: ") and words in rendered
    if text.strip():
        assert rendered.rstrip().endswith("^")


def test_aliases_are_fine_but_bounded() -> None:
    assert read("a: &x {k: [1]}\nb: *x\nc: {<<: *x, d: 2}\n") == {
        "a": {"k": [1]}, "b": {"k": [1]}, "c": {"d": 2, "k": [1]}
    }  # fmt: skip
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert "aliases" in refused(bomb)


def test_deep_nesting_is_refused_without_a_traceback() -> None:
    assert "nested deeper" in refused("a: " + "[" * 70 + "]" * 70)
    assert "nested deeper" in refused("a: " + "[" * 5000 + "]" * 5000)


def test_bytes_that_are_no_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_bytes("a: 1\nb: gr\u00fc\u00df ".encode() + b"\xff\n")
    with pytest.raises(DocumentError) as caught:
        load_document(path, "j.yaml")
    assert caught.value.problems[0].render().startswith("j.yaml:2:9: byte 0xff is not UTF-8")


def test_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    document = load_document(path)
    assert plain(document) == {"a": 1, "b": "x"}
    assert key_mark(document, ("b",)).line == 1


def test_marks_of_keys_values_and_of_what_is_not_written() -> None:
    document = parse_mapping(Source("f", "a:\n  b: [1, xyz]\n  c:\n"))
    assert str(key_mark(document, ("a", "b"))) == "f:2:3"
    assert (str(value_mark(document, ("a", "b", "1"))), value_mark(document, ("a", "b", "1")).length) == ("f:2:10", 3)
    assert str(value_mark(document, ("a", "c"))) == "f:3:3"
    assert str(value_mark(document, ("a", "nothing", "below"))) == "f:1:1"
    assert find(document, ("a", "b", "7")) is None


def test_carets_stand_under_wide_letters_and_in_long_lines() -> None:
    rendered = refused("\u540d\u524d: {x: 1, x: 2}\n").split("\n")
    assert rendered[2].index("^") == rendered[1].index("x: 2") + 2  # two letters, two columns each
    rendered = refused("k: {" + ", ".join(f"k{i}: {i}" for i in range(100)) + ", k0: 1}\n").split("\n")
    assert len(rendered[1]) < 140 and rendered[1][rendered[2].index("^") :].startswith("k0: 1")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner),
                    max_leaves=12))  # fmt: skip
def test_what_yaml_writes_is_read_back(value: object) -> None:
    import yaml

    assert read(yaml.safe_dump({"k": value}, allow_unicode=True)) == {"k": value}
