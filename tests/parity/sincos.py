"""Fixed sine-cosine tables of v1.0."""

from __future__ import annotations

from models.layers.tables import sincos_table_1d, sincos_table_2d
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    for index, item in enumerate(case.config.get("grid2d", [])):
        rows, columns = item["grid"]
        table = sincos_table_2d(item["dim"], (rows, columns), item.get("scale", 1.0), item.get("base"))
        computed[f"grid2d/{index}"] = table
    for index, item in enumerate(case.config.get("grid1d", [])):
        computed[f"grid1d/{index}"] = sincos_table_1d(item["dim"], item["length"], item.get("scale", 1.0))
    return computed
