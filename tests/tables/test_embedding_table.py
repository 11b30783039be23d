"""EmbeddingTable: rows, gradients against autograd, growth, shards, named tensors."""

from __future__ import annotations

import errno
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from widedeep.errors import CheckpointError, DataError, SchemaError
from widedeep.kernels import init_rows
from widedeep.optim import FTRL, SGD, Adagrad, Adam
from widedeep.tables.embedding_table import EmbeddingTable, Groups
from widedeep.tables.storage import RecordLayout, RowStorage
from widedeep.training.checkpoint import as_arrays

SLOTS = [
    SimpleNamespace(name="age", combiner="sum", wide_combiner=str),
    SimpleNamespace(name="home", combiner="mean", wide_combiner=str),
    SimpleNamespace(name="other", combiner="sum", wide_combiner=str),  # belongs to another table
    SimpleNamespace(name="work", combiner="sqrtn", wide_combiner=str),
    SimpleNamespace(name="seen", combiner=None, wide_combiner=str),
]
SIZES = {"age": 50, "city": 30}
FEATURES = {"age": "age", "home": "city", "work": "city", "seen": "city"}
COLUMNS = {"age": slice(4, 8), "home": slice(0, 4), "work": slice(9, 13)}
OPTIMIZERS = [FTRL(l1=0.1), Adagrad(), SGD(), Adam()]


def make_table(*, std: float = 0.1, dim: int = 4, twins: bool = False) -> EmbeddingTable:
    table = EmbeddingTable(SIZES, FEATURES, dim=dim, seed=3, std=std)
    table._on_device = twins
    return table


def make_batch(seed: int, *, with_values: bool = False, rows: int = 20) -> Any:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows * len(SLOTS))
    sizes = np.array([50, 30, 10**12, 30, 30])[np.arange(len(lengths)) % len(SLOTS)]
    ids = rng.integers(0, np.minimum(np.repeat(sizes, lengths), 60))
    values = rng.uniform(0.2, 2.0, len(ids)).astype(np.float32)
    return SimpleNamespace(
        ids_N=ids,
        offsets_BF=np.concatenate([[0], np.cumsum(lengths)]),
        values_N=values if with_values else None,
    )


def ids_of(batch: Any, example: int, slot: int) -> slice:
    cell = example * len(SLOTS) + slot
    return slice(int(batch.offsets_BF[cell]), int(batch.offsets_BF[cell + 1]))


def plain_bag(table: EmbeddingTable, weight: Tensor, batch: Any, b: int, slot: int) -> Tensor:
    """One bag in plain torch, from the definition of the combiners."""
    where = ids_of(batch, b, slot)
    rows = torch.from_numpy(table.rows(SLOTS[slot].name, batch.ids_N[where]))
    if not len(rows):
        return torch.zeros(weight.shape[1], dtype=weight.dtype)
    w = torch.ones(len(rows), dtype=weight.dtype)
    if batch.values_N is not None:
        w = torch.from_numpy(batch.values_N[where]).to(weight.dtype)
    total = (w[:, None] * weight[rows]).sum(0)
    combiner = SLOTS[slot].combiner
    return total / {"sum": 1, "mean": w.sum(), "sqrtn": (w * w).sum().sqrt()}[combiner]


@pytest.mark.parametrize("twins", [False, True], ids=["kernels", "twins"])
@pytest.mark.parametrize("with_values", [False, True])
def test_gather_and_its_gradient_equal_autograd(with_values: bool, twins: bool) -> None:
    table = make_table(twins=twins)
    batch = make_batch(0, with_values=with_values)
    out = torch.full((20, 13), 7.0)
    table.gather(batch, SLOTS, COLUMNS, out)
    leaf = table.weight.double().requires_grad_()
    expected = torch.full((20, 13), 7.0, dtype=torch.float64)
    for b in range(20):
        for slot, place in ((0, COLUMNS["age"]), (1, COLUMNS["home"]), (3, COLUMNS["work"])):
            expected[b, place] = plain_bag(table, leaf, batch, b, slot)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-6, atol=1e-6)

    grad_BX = torch.randn(20, 13, generator=torch.Generator().manual_seed(1))
    picks = np.concatenate([np.arange(len(batch.ids_N))[ids_of(batch, b, 4)] for b in range(20)])
    rows = torch.from_numpy(table.rows("seen", batch.ids_N[picks]))
    seen_ND = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(2))
    ((expected * grad_BX).sum() + (leaf[rows] * seen_ND).sum()).backward()

    groups = table.group(batch, SLOTS)
    sums = table.sum_deep(batch, groups, SLOTS, COLUMNS, grad_BX, {"seen": seen_ND})
    found = torch.zeros(80, 4, dtype=torch.float64)
    found[groups.rows] = sums.double()
    assert leaf.grad is not None
    torch.testing.assert_close(found, leaf.grad, rtol=1e-5, atol=1e-5)
    assert len(groups.rows.unique()) == len(groups)


@pytest.mark.parametrize("dim", [4, 5])
@pytest.mark.parametrize("twins", [False, True], ids=["kernels", "twins"])
def test_a_maximum_has_its_first_row_to_move(twins: bool, dim: int) -> None:
    slots: list[Any] = [SimpleNamespace(**vars(slot)) for slot in SLOTS]
    slots[1].combiner = "max"
    columns = {"age": slice(0, dim), "home": slice(dim, 2 * dim), "work": slice(2 * dim, 3 * dim)}
    table, batch = make_table(dim=dim, twins=twins), make_batch(0)
    weight = table.weight.numpy()
    weight[table.rows("home", np.array([3]))] = weight[table.rows("home", np.array([8]))]  # ties
    out = torch.full((20, 3 * dim), 7.0)
    table.gather(batch, slots, columns, out)
    grad_BX = torch.randn(20, 3 * dim, generator=torch.Generator().manual_seed(1))
    n_seen = sum(len(batch.ids_N[ids_of(batch, b, 4)]) for b in range(20))
    groups = table.group(batch, slots)
    own = torch.zeros(80, dim)
    zeros = {"seen": torch.zeros(n_seen, dim)}
    alone = grad_BX.clone()
    alone[:, columns["age"]] = alone[:, columns["work"]] = 0.0
    own[groups.rows] = table.sum_deep(batch, groups, slots, columns, alone, zeros)

    expected, moved = np.zeros((20, dim), np.float32), np.zeros((80, dim))
    for b in range(20):
        rows = table.rows("home", batch.ids_N[ids_of(batch, b, 1)])
        for d in range(dim if len(rows) else 0):
            first = rows[weight[rows, d].argmax()]  # NumPy's is the first one
            expected[b, d] = weight[first, d]
            moved[first, d] += grad_BX[b, dim + d]
    np.testing.assert_array_equal(out[:, columns["home"]], expected)
    np.testing.assert_allclose(own, moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("twins", [False, True], ids=["kernels", "twins"])
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_wide_sum_and_its_gradient_equal_autograd(combiner: str, twins: bool) -> None:
    table = make_table(dim=7, twins=twins)
    batch = make_batch(4, with_values=combiner != "mean")
    logits = torch.ones(20, 7)
    table.add_wide(batch, SLOTS, combiner, logits)
    leaf = table.weight.double().requires_grad_()
    expected = torch.ones(20, 7, dtype=torch.float64)
    kept = [slot.combiner for slot in SLOTS]
    for slot in SLOTS:
        slot.combiner = combiner
    for b in range(20):
        for slot in (0, 1, 3, 4):
            expected[b] = expected[b] + plain_bag(table, leaf, batch, b, slot)
    for slot, old in zip(SLOTS, kept, strict=True):
        slot.combiner = old
    torch.testing.assert_close(logits.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    grad_BC = torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    (expected * grad_BC).sum().backward()
    groups = table.group(batch, SLOTS)
    found = torch.zeros(80, 7, dtype=torch.float64)
    found[groups.rows] = table.sum_wide(batch, groups, SLOTS, combiner, grad_BC).double()
    assert leaf.grad is not None
    torch.testing.assert_close(found, leaf.grad, rtol=1e-5, atol=1e-5)


def learn(table: EmbeddingTable, optimizer: Any, steps: range, threads: int = 1) -> None:
    for step in steps:
        batch = make_batch(step)
        groups = table.group(batch, SLOTS, threads=threads)
        generator = torch.Generator().manual_seed(step)
        grad_BC = torch.randn(20, table.dim, generator=generator)
        sums = table.sum_wide(batch, groups, SLOTS, "sum", grad_BC, threads=threads)
        table.apply(groups, sums, optimizer, step=step, threads=threads)


def state_of(table: EmbeddingTable) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in table.named_state().items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert np.array_equal(array, other[name]), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("std", [0.0, 0.1])
def test_steps_repeat_resume_and_count(optimizer: Any, std: float) -> None:
    whole, threaded = make_table(std=std, dim=1), make_table(std=std, dim=1)
    learn(whole, optimizer, range(1, 9))
    learn(threaded, optimizer, range(1, 9), threads=3)
    assert_same(state_of(whole), state_of(threaded))
    assert whole.nonzero == int(torch.count_nonzero(whole.weight))
    first = make_table(std=std, dim=1)
    learn(first, optimizer, range(1, 5))
    second = make_table(std=std, dim=1)
    second.attach(optimizer)
    second.load_named_state(state_of(first))
    assert second.nonzero == first.nonzero
    learn(second, optimizer, range(5, 9))
    assert_same(state_of(whole), state_of(second))


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_growing_keeps_the_old_bits_and_makes_the_new_ones(optimizer: Any) -> None:
    grown = make_table()
    grown.attach(optimizer)
    learn(grown, optimizer, range(1, 4))
    before = state_of(grown)
    grown.grow("age", 70)
    after = state_of(grown)
    large = EmbeddingTable({**SIZES, "age": 70}, FEATURES, dim=4, seed=3, std=0.1)
    large.attach(optimizer)
    fresh = state_of(large)
    for name, array in after.items():
        held = len(before[name])
        assert np.array_equal(array[:held], before[name])
        assert np.array_equal(array[held:], fresh[name][held:])
    assert grown.rows("work", np.array([0])).tolist() == [70]
    learn(grown, optimizer, range(4, 7))


def test_growing_before_use_equals_starting_large() -> None:
    grown = make_table()
    grown.grow("city", 45)
    large = EmbeddingTable({**SIZES, "city": 45}, FEATURES, dim=4, seed=3, std=0.1)
    assert_same(state_of(grown), state_of(large))


def test_a_shard_of_rows_has_the_bits_of_the_whole() -> None:
    whole = make_table().named_weights()["city"]
    shard = np.empty((10, 4), np.float32)
    init_rows(shard, 3, "city", 20, 0.1)
    assert np.array_equal(whole[20:].numpy(), shard)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("is_filled", [False, True])
def test_ranks_keep_the_rows_of_the_whole(world: int, *, is_filled: bool) -> None:
    ids_M, vectors_MD = np.array([1, 4, 7]), torch.full((3, 4), 0.5)
    options: dict[str, Any] = {"dim": 4, "seed": 3, "std": 0.1}
    options["vectors"] = {"city": (ids_M, vectors_MD)}
    whole = EmbeddingTable({**SIZES, "city": 45}, FEATURES, **options)
    whole.attach(Adagrad(initial_accumulator=0.3))
    expected = whole.named_state()
    for rank in range(world):
        table = EmbeddingTable(SIZES, FEATURES, **options)
        table.attach(Adagrad(initial_accumulator=0.3))
        if is_filled:
            assert table.weight.any()
        table.set_shard(rank, world)
        table.grow("city", 45)
        for key, values in table.named_state().items():
            ids = table.layouts[key.rpartition(".")[0]].ids_of(rank)
            assert len(values) < len(expected[key])
            assert torch.equal(values, expected[key][ids]), key


def test_rows_made_before_and_after_attaching_are_the_same() -> None:
    early, late = make_table(), make_table()
    assert early.weight.any()  # makes the rows
    for table in (early, late):
        table.attach(Adagrad(initial_accumulator=0.3))
    assert_same(state_of(early), state_of(late))
    learn(early, Adagrad(initial_accumulator=0.3), range(1, 3))
    early.attach(Adagrad(initial_accumulator=0.2))
    assert (early.state["accumulator"] == np.float32(0.2)).all()


def test_ftrl_keeps_embeddings_that_start_at_random() -> None:
    table = make_table()
    ftrl = FTRL(l1=0.5)
    table.attach(ftrl)
    before = table.weight.clone()
    batch = make_batch(0)
    groups = table.group(batch, SLOTS)
    table.apply(groups, torch.zeros(len(groups), 4), ftrl)
    torch.testing.assert_close(table.weight, before)


def test_a_batch_without_ids_moves_nothing() -> None:
    table = make_table()
    empty = SimpleNamespace(
        ids_N=np.zeros(0, np.int64), offsets_BF=np.zeros(11, np.int64), values_N=None
    )
    out = torch.full((2, 13), 7.0)
    table.gather(empty, SLOTS, COLUMNS, out)
    assert out[:, :8].abs().sum() == 0 and out[0, 8] == 7
    before = table.weight.clone()
    groups = table.group(empty, SLOTS)
    table.apply(
        groups, table.sum_deep(empty, groups, SLOTS, COLUMNS, out, {"seen": torch.zeros(0, 4)}),
        Adagrad(),
    )  # fmt: skip
    assert len(groups) == 0 and torch.equal(table.weight, before)


@pytest.mark.parametrize("twins", [False, True], ids=["kernels", "twins"])
def test_an_id_outside_names_its_feature(twins: bool) -> None:
    table, batch = make_table(twins=twins), make_batch(0)
    example = next(b for b in range(20) if len(batch.ids_N[ids_of(batch, b, 3)]))
    batch.ids_N[ids_of(batch, example, 3).start] = 30
    message = (
        rf"feature 'work' \(example {example} of the batch\): got id 30, expected 0 <= id < 30"
    )
    with pytest.raises(DataError, match=message):
        table.gather(batch, SLOTS, COLUMNS, torch.zeros(20, 13))
    with pytest.raises(DataError, match=message):
        table.group(batch, SLOTS)
    with pytest.raises(DataError, match=message):
        table.add_wide(batch, SLOTS, "sum", torch.zeros(20, 4))
    with pytest.raises(DataError, match="feature 'home': got id -1, expected 0 <= id < 30"):
        table.rows("home", np.array([2, -1]))


def test_wrong_declarations_are_named() -> None:
    with pytest.raises(SchemaError, match="feature 'home': got table 'cty'; did you mean 'city'"):
        EmbeddingTable({"city": 3}, {"home": "cty"}, dim=2)
    with pytest.raises(SchemaError, match="expected all of them to be >= 1"):
        EmbeddingTable({"city": 0}, {"home": "city"}, dim=2)
    table = make_table()
    with pytest.raises(SchemaError, match="got feature 'hone'; did you mean 'home'"):
        table.rows("hone", np.array([0]))
    with pytest.raises(SchemaError, match=r"table 'city': got size 20, expected at least .* 30"):
        table.grow("city", 20)


def test_state_of_another_shape_is_refused_and_changes_nothing() -> None:
    table = make_table()
    table.attach(Adagrad())
    good = state_of(table)
    wrong = {
        "missing": {name: a for name, a in good.items() if name != "city.accumulator"},
        "unknown": {**good, "city.z": good["city.weight"]},
        "got shape": {**good, "age.weight": good["age.weight"][:3]},
    }
    for message, tensors in wrong.items():
        changed = {name: array + 1 for name, array in tensors.items()}
        with pytest.raises(CheckpointError, match=message):
            table.load_named_state(changed)
        assert_same(state_of(table), good)


def test_a_row_and_its_state_share_a_record() -> None:
    cpu = torch.device("cpu")
    wide = RowStorage(10, RecordLayout(1, ("weight", "z", "n"), (1, 1, 1)), cpu)
    assert wide.part("n").stride(0) == 3
    deep = RowStorage(10, RecordLayout(16, ("weight", "accumulator"), (16, 16)), cpu)
    assert deep.part("accumulator").data_ptr() - deep.part("weight").data_ptr() == 64
    assert deep.part("weight").data_ptr() % 64 == 0


def test_large_storage_in_huge_pages() -> None:
    storage = RowStorage(200_000, RecordLayout(16, ("weight",), (16,)), torch.device("cpu"))
    weight = storage.part("weight")
    assert weight.data_ptr() % 4096 == 0 and not weight.any()
    weight[:, 0] = torch.arange(200_000.0)
    storage.collapse()  # moves pages, no numbers
    assert torch.equal(weight[:, 0], torch.arange(200_000.0)) and not weight[:, 1:].any()
    copied = pickle.loads(pickle.dumps(storage))
    copied.collapse()
    assert torch.equal(copied.part("weight"), weight)


@pytest.mark.parametrize(("number", "calls"), [(errno.EINVAL, 40), (errno.ENOMEM, 8)])
def test_huge_pages_are_not_asked_for_without_end(number: int, calls: int) -> None:
    class Pages:
        asked = 0

        def __len__(self) -> int:
            return 40 * (64 << 20)

        def madvise(self, *_: int) -> None:
            self.asked += 1
            raise OSError(number, "")

    storage = RowStorage(2, RecordLayout(16, ("weight",), (16,)), torch.device("cpu"))
    pages: Any = Pages()
    storage._pages = pages
    storage.collapse()
    assert pages.asked == calls


@pytest.mark.parametrize("dim", [3, 16, 32])
def test_a_small_record_has_no_gaps(dim: int) -> None:
    optimizer = Adagrad(row_wise=True)
    table = EmbeddingTable({"city": 9}, {"city": "city"}, dim=dim, std=0.1, dtype=torch.bfloat16)
    assert table.record_layout(optimizer).stride == -(-2 * dim // 4) * 4 + 4
    table.attach(optimizer)
    assert table.state["accumulator"].shape == (9, 1) and table.weight.dtype == torch.bfloat16
    assert (table.state["accumulator"] == np.float32(1e-6)).all()
    same = EmbeddingTable({"city": 9}, {"city": "city"}, dim=dim, std=0.1)
    assert torch.equal(table.weight, same.weight.bfloat16())
    table.grow("city", 12)
    same.grow("city", 12)
    assert torch.equal(table.weight, same.weight.bfloat16()) and len(table.weight) == 12


def test_rows_of_other_numbers_are_refused() -> None:
    half = EmbeddingTable({"city": 9}, {"city": "city"}, dim=4, dtype=torch.bfloat16)
    whole = EmbeddingTable({"city": 9}, {"city": "city"}, dim=4)
    for one, other in ((half, whole), (whole, half)):
        with pytest.raises(CheckpointError, match="give the table_dtype of the checkpoint's run"):
            one.load_named_state(as_arrays(other.named_state()))


def test_groups_tell_their_size() -> None:
    groups = make_table().group(make_batch(2), SLOTS)
    assert isinstance(groups, Groups) and len(groups) == len(groups.rows) > 0


def test_groups_serve_another_table_of_the_same_features() -> None:
    names = ["age", "home", "other", "work"]
    wide = EmbeddingTable(dict.fromkeys(names, 60), {name: name for name in names}, dim=1)
    batch = make_batch(5)
    batch.ids_N = np.minimum(batch.ids_N, 59)
    groups = wide.group(batch, SLOTS)
    for taken in (["home", "other"], ["age", "work"], ["work", "age"]):
        deep = EmbeddingTable(dict.fromkeys(taken, 60), {name: name for name in taken}, dim=4)
        served, alone = deep.regroup(wide, groups), deep.group(batch, SLOTS)
        assert served is not None
        assert served.rows.sort().values.tolist() == alone.rows.sort().values.tolist()
        grad = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
        columns = {name: slice(i * 4, i * 4 + 4) for i, name in enumerate(taken)}
        sums = [
            torch.zeros(120, 4).index_copy(0, g.rows, deep.sum_deep(batch, g, SLOTS, columns, grad))
            for g in (served, alone)
        ]
        assert torch.equal(sums[0], sums[1])
    shared = EmbeddingTable({"age": 60}, {"age": "age", "home": "age"}, dim=4)
    assert shared.regroup(wide, groups) is None
    renamed = EmbeddingTable({"other": 60}, {"home": "other"}, dim=4)
    assert renamed.regroup(wide, groups) is None
