"""npz files read in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.npz import UNREADABLE, array_shapes, read_array, read_rows, write_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8])
def test_rows_of_an_array(tmp_path: Path, save: object, dtype: type) -> None:
    values = np.arange(5 * 3 * 2, dtype=dtype).reshape(5, 3, 2)
    arrays = {"first": np.zeros(7), "a": values, "columns": np.asfortranarray(values), "last": np.ones(3)}
    save(tmp_path / "x.npz", **arrays)  # type: ignore[operator]
    for start, stop in ((0, 5), (2, 4), (4, 5), (3, 3)):
        for name in ("a", "columns"):
            rows = read_rows(tmp_path / "x.npz", name, start, stop)
            assert rows.dtype == dtype
            assert np.array_equal(rows, values[start:stop])
    for name, expected in arrays.items():
        whole = read_array(tmp_path / "x.npz", name)
        assert (whole.dtype, whole.flags.writeable) == (expected.dtype, True)
        assert np.array_equal(whole, expected)


def test_what_is_no_plain_array_is_refused(tmp_path: Path) -> None:
    odd = {"objects": np.array([{}], object), "fields": np.zeros(2, [("a", "f4")]), "empty": np.zeros((0, 3))}
    np.savez(tmp_path / "x.npz", scalar=np.float32(8), words=np.array(["ab"]), **odd)
    for name in ("objects", "fields"):
        with pytest.raises(ValueError, match=name):
            read_array(tmp_path / "x.npz", name)
    assert read_array(tmp_path / "x.npz", "empty").shape == (0, 3)
    assert read_array(tmp_path / "x.npz", "scalar") == np.float32(8)
    assert read_array(tmp_path / "x.npz", "words").tolist() == ["ab"]


def test_no_python_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that parse Python at once can fail (cpython issue 106905); loaders read in several."""
    write_npz(tmp_path / "x.npz", {"a": np.zeros((4, 2))})

    def parse(*_: object) -> None:
        raise AssertionError("a header was parsed as Python")

    monkeypatch.setattr("ast.literal_eval", parse)
    assert array_shapes(tmp_path / "x.npz") == {"a": (4, 2)}
    assert read_array(tmp_path / "x.npz", "a").shape == (4, 2)
    assert read_rows(tmp_path / "x.npz", "a", 1, 3).shape == (2, 2)


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    write_npz(tmp_path / "deep" / "x.npz", {"a": np.zeros((4, 2))})
    assert array_shapes(tmp_path / "deep" / "x.npz") == {"a": (4, 2)}
    with pytest.raises(ValueError, match="has 4 rows, 2 to 5 are wanted"):
        read_rows(tmp_path / "deep" / "x.npz", "a", 2, 5)
    with pytest.raises(KeyError):
        read_rows(tmp_path / "deep" / "x.npz", "b", 0, 1)
    (tmp_path / "x.npz").write_bytes((tmp_path / "deep" / "x.npz").read_bytes()[:-30])
    with pytest.raises(UNREADABLE):
        read_rows(tmp_path / "x.npz", "a", 0, 1)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]
