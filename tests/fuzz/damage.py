"""Ways to damage good input: bytes, lines and values replaced, removed, doubled, cut."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD = [
    "", " ", "-", "0", "-1", "010", "1e999", "nan", "~", "null", "true", "on", "9:16", "\t", "\0", "\x1b[2J", "漢字",
    "\ud800", "a" * 3000, "${HOME}", "$(id)", "../..", "/", "*a", "&a", "!!python/object:os.system", "{", "[", "'", "#",
    ">", "|", "%TAG", "---", "<<", "1" * 400, "0x" + "f" * 300, "2026-01-01", "=", "?", "@", "`",
]  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.integers(-3, 70000),
    st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=12), st.sampled_from(ODD),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | scalars, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed_text(draw: st.DrawFn, originals: list[str]) -> str:
    """Lines and letters of a good text changed."""
    lines = draw(st.sampled_from(originals)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(lines) - 1)))
        if not lines:
            break
        how = draw(st.sampled_from(["drop", "double", "swap", "insert", "cut", "indent", "replace"]))
        line = lines[place]
        at = draw(st.integers(0, len(line)))
        if how == "drop":
            del lines[place]
        elif how == "double":
            lines.insert(place, line)
        elif how == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[place], lines[other] = lines[other], line
        elif how == "insert":
            lines[place] = line[:at] + draw(st.sampled_from(ODD) | st.text(max_size=8)) + line[at:]
        elif how == "cut":
            lines[place] = line[:at]
        elif how == "indent":
            lines[place] = " " * draw(st.integers(0, 6)) + line.lstrip()
        else:
            lines[place] = line.partition(":")[0] + ": " + draw(st.sampled_from(ODD))
    return "\n".join(lines)


@st.composite
def changed_bytes(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Single bytes and stretches of a good file changed."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["set", "cut", "drop", "insert"]))
        if how == "set" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place:]
        elif how == "drop":
            del data[place : place + draw(st.integers(1, 40))]
        else:
            data[place:place] = draw(st.binary(max_size=12))
    return bytes(data)


@st.composite
def changed_value(draw: st.DrawFn, originals: list[Any]) -> Any:
    """Values somewhere in good JSON or YAML replaced, removed or doubled."""
    tree = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        holder = tree
        while isinstance(holder, dict | list) and holder:
            places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            place = draw(st.sampled_from(places))
            inner = holder[place]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                holder = inner
                continue
            how = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
            if how == "drop":
                del holder[place]
            elif how == "add" and isinstance(holder, dict):
                holder[draw(st.text(max_size=8) | st.sampled_from(ODD))] = draw(values)
            else:
                holder[place] = draw(values)
            break
    return tree
