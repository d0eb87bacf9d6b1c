"""npz files read in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.npz import UNREADABLE, array_shapes, read_rows, write_npz


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
