"""The layout: places, groups, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostrain.layout import Layout, divisors

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda n: st.tuples(st.just(n[0]), st.just(n[1]), st.sampled_from(divisors(n[0] * n[1])))
)


@given(SIZES)
def test_groups_partition_the_world(sizes: tuple[int, int, int]) -> None:
    nodes, devices, sp = sizes
    layout = Layout(nodes, devices, sp, "dsp")
    for groups, size in ((layout.sp_groups(), sp), (layout.dp_groups(), layout.dp)):
        assert sorted(rank for group in groups for rank in group) == list(range(layout.world))
        assert {len(group) for group in groups} == {size}
    for rank in range(layout.world):
        place = layout.place(rank)
        assert layout.ranks_of_node(place.node)[place.local_rank] == rank
        assert layout.sp_groups()[place.dp_rank][place.sp_rank] == rank
        assert layout.dp_groups()[place.sp_rank][place.dp_rank] == rank


def test_the_readmes_example() -> None:
    layout = Layout.checked(2, 8, num_heads=16, sp=4, sp_kind="dsp", zero=2)
    assert (layout.world, layout.dp) == (16, 4)
    assert layout.sp_groups()[1] == (4, 5, 6, 7) and layout.dp_groups()[1] == (1, 5, 9, 13)
    place = layout.place(13)
    assert (place.node, place.local_rank, place.dp_rank, place.sp_rank) == (1, 5, 3, 1)
    assert layout.to_dict() == {
        "nodes": 2, "devices_per_node": 8, "sp": 4, "sp_kind": "dsp", "zero": 2, "world": 16, "dp": 4
    }  # fmt: skip


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        ({"sp": 3}, "sp 3 does not divide the 16 workers"),
        ({"sp": 16}, "12 attention heads among sp 16"),
        ({"zero": 4}, "the stages are 0, 1, 2 and 3"),
        ({"sp": 0}, "sp is 0; it has to be at least 1"),
    ],
)
def test_degrees_that_cannot_be(degrees: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layout.checked(2, 8, num_heads=12, **degrees)


def test_advice_names_only_what_works() -> None:
    (problem,) = Layout(2, 8, 16).problems(12)
    assert "1, 2 or 4 would work" in problem.message
    (problem,) = Layout(2, 8, 5, "dsp").problems(12)
    assert "1, 2, 4, 8 or 16 would work" in problem.message


def test_ranks_and_nodes_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"rank 4 is not one of 0\.\.3"):
        Layout(2, 2).place(4)
    with pytest.raises(ValueError, match=r"node 2 is not one of 0\.\.1"):
        Layout(2, 2).ranks_of_node(2)
