"""The tree by which sums over lanes are added: the same one, whoever has which lanes."""

from __future__ import annotations

import pytest

from widedeep.ranks.lanes import LaneTree, spans


def total(lanes: int, nodes: list[tuple[int, str]]) -> str:
    tree = LaneTree[str](lanes, lambda first, second: f"({first}{second})")
    for lane, value in nodes:
        tree.push(lane, value)
    return tree.total()


@pytest.mark.parametrize("lanes", [1, 2, 3, 6, 7, 24])
def test_sums_of_ranks_add_up_to_the_sum_of_one_process(lanes: int) -> None:
    names = "abcdefghijklmnopqrstuvwx"
    alone = total(lanes, list(enumerate(names[:lanes])))
    for size in range(1, lanes + 1):
        nodes = []
        for rank in range(size):
            own = spans(lanes, lanes * rank // size, lanes * (rank + 1) // size)
            assert len(own) <= 2 * lanes.bit_length()
            for node in own:
                leaves = [(lane, names[lane]) for lane in node]
                nodes.append((node.start, total(lanes, leaves)))
        assert total(lanes, nodes) == alone


def test_halves_of_ranks_that_are_powers_of_two_are_one_sum_each() -> None:
    for size in (1, 2, 4, 8):
        assert all(len(spans(24, 24 * r // size, 24 * (r + 1) // size)) == 1 for r in range(size))
    assert total(6, [(lane, str(lane)) for lane in (0, 2, 3, 5)]) == "((02)(35))"
