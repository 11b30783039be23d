import numpy as np
import pytest

from widedeep.ranks.layout import Layout


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 4096])
@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, 13_000])
def test_every_id_has_one_row_of_one_rank(world: int, size: int) -> None:
    layout = Layout("city", size, world)
    ids = np.arange(size)
    owners, places = layout.owner_of(ids), layout.place_of(ids)
    for rank in {0, 1 % world, world - 1, int(owners[-1])}:
        own = layout.ids_of(rank)
        assert np.array_equal(own, np.flatnonzero(owners == rank))
        assert layout.rows_of(rank) == len(own)
        assert np.array_equal(places[own], np.arange(len(own)))
        assert np.array_equal(layout.ids_of(rank, 1, 3), own[1:3]) or len(own) < 3
    counts = np.bincount(owners, minlength=world)
    assert counts.sum() == size
    if world < 4096:
        assert counts.max() <= 1.02 * size / world + 3


@pytest.mark.parametrize("world", [2, 3, 8])
def test_a_table_that_grows_keeps_its_rows(world: int) -> None:
    small, large = Layout("city", 5000, world), Layout("city", 9000, world)
    ids = np.arange(5000)
    assert np.array_equal(small.owner_of(ids), large.owner_of(ids))
    assert np.array_equal(small.place_of(ids), large.place_of(ids))


def test_frequent_ids_are_spread_over_the_ranks() -> None:
    weights = 1.0 / np.arange(1, 100_001) ** 1.05
    loads = np.zeros(8)
    for table in "abcdefghijklmnopqrstuvwxyz":
        layout = Layout(table, len(weights), 8)
        asked = 1.0 - np.exp(-8192 * weights / weights.sum())  # distinct rows of 8,192 draws
        loads += np.bincount(layout.owner_of(np.arange(len(weights))), asked, minlength=8)
    assert loads.max() <= 1.05 * loads.mean()


@pytest.mark.parametrize("stride", [2, 3, 8, 10, 64])
def test_ids_at_even_distances_are_spread_too(stride: int) -> None:
    owners = Layout("price", 1 << 20, 8).owner_of(np.arange(0, 1 << 20, stride))
    counts = np.bincount(owners, minlength=8)
    assert counts.max() <= 1.05 * counts.mean()


def test_a_number_of_ranks_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="world: got 0, expected 1 to 4096"):
        Layout("city", 3, 0)
