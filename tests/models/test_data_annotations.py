"""Annotation files: what is read, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.annotations import Row, read_annotations
from models.exits import BAD_DATA, PayloadError


def read(path: Path) -> list[Row]:
    return read_annotations(path, "video", "caption")


def test_quoted_captions_with_commas_newlines_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffid,video,caption\r\n1,a b.mp4,"one, ""two""\nthree"\r\n\r\n2,ü.mp4,\r\n'.encode())
    assert read(path) == [Row("a b.mp4", 'one, "two"\nthree', 2), Row("ü.mp4", "", 5)]


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("", "is empty", 0),
        ("video,caption\n", "holds no clips", 0),
        ("video,captions\na,b\n", "no column 'caption'; did you mean 'captions'?", 1),
        ("path;text\na;b\n", "no column 'video'", 1),
        ("video,caption\na.mp4,b\nc.mp4\n", "row has too few columns", 3),
        ("video,caption\n ,b\n", "row names no video", 2),
        ('video,caption\na.mp4,"open\n', "is not valid CSV", 2),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, text: str, what: str, line: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(PayloadError) as caught:
        read(path)
    assert what in caught.value.what
    assert caught.value.where == (f"{path}:{line}" if line else str(path))
    assert caught.value.exit_code == BAD_DATA
    assert caught.value.next_step


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="does not exist"):
        read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"video,caption\n\xff\xfe,x\n")
    with pytest.raises(PayloadError, match="is not UTF-8"):
        read(tmp_path / "b.csv")
    with pytest.raises(PayloadError, match="cannot be read"):
        read(tmp_path)
