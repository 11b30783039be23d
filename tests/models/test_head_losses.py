"""The loss of a model over its heads: masks, weights, requests, and numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import widedeep as wd
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.requests import RequestSource, request_encoder
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError, FeatureError
from widedeep.models.heads import FunctionHead
from widedeep.models.losses import register_loss, unregister_loss

RNG = np.random.default_rng(7)


def rows(count: int = 60) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        click = i % 3 == 0
        found.append(
            {
                "request": i // 4,
                "job": "abc"[i % 3],
                "age": float(RNG.normal()),
                "click": float(click),
                "price": float(1 + i % 5) if click else None,
                "units": float(1 + i % 2) if click else None,
                "tags": [["x"], ["x", "y"], [], None][i % 4],
                "weight": 0.5 + i % 2,
            }
        )
    return found


def model_of(data: list[dict[str, Any]], heads: Mapping[str, Any], **options: Any) -> wd.WideDeep:
    spec = wd.FeatureSpec(features=[wd.categorical("job"), wd.numeric("age")], **options)
    return wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[3], embedding_dim=2, head=heads)


def test_masks_and_weights_are_those_of_a_plain_sum() -> None:
    data = rows()
    model = model_of(
        data,
        {"price": {"kind": "tweedie", "loss_weight": 0.3}},
        label={"click": "click", "price": "price", "tags": "tags"},
        weight="weight",
        head_weights={"price": "units"},
    )
    batch = Transform(model.schema)(pa.Table.from_pylist(data))
    logits = torch.randn(len(data), 4, generator=torch.Generator().manual_seed(2))
    values, gradient = model.losses(logits, batch, lambda n: torch.from_numpy(getattr(batch, n)))
    leaf = logits.double().requires_grad_()
    total = torch.zeros(len(data), dtype=torch.float64)
    parts = []
    for i, row in enumerate(data):
        z = leaf[i]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            z[0], torch.tensor(row["click"], dtype=torch.float64)
        )
        if row["price"] is not None:
            mean = z[1].exp()
            cost = -row["price"] * mean**-0.5 / -0.5 + mean**0.5 / 0.5
            loss = loss + 0.3 * row["units"] * cost
        if row["tags"] is not None:
            y = torch.tensor([float(c in row["tags"]) for c in "xy"], dtype=torch.float64)
            loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(z[2:], y)
        parts.append(loss)
    total = torch.stack(parts)
    weight = torch.tensor([row["weight"] for row in data], dtype=torch.float64)
    (slopes,) = torch.autograd.grad((weight * total).sum(), leaf)
    np.testing.assert_allclose(values, total.detach(), rtol=2e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_anything_moves(
    precision: str, tmp_path: Path
) -> None:
    @register_loss("breaks")
    def breaks(logits: Tensor, labels: Tensor) -> Tensor:
        if precision == "loss":
            return torch.where(labels > 4, torch.log(-labels.abs()), (logits - labels) ** 2)
        root = torch.where(labels > 4, (logits - logits.detach()).abs(), torch.ones_like(logits))
        return torch.sqrt(root) + logits**2

    data = [{**row, "price": 1.0} for row in rows(64)]
    data[41]["price"] = 5.0
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "rows.parquet", row_group_size=16)
    try:
        model = model_of(data, FunctionHead(loss="breaks"), label="price")  # type: ignore[arg-type]
        trainer = wd.Trainer(model, batch_size=8, progress=False, checkpoints=tmp_path / "c")
        trainer.fit(data[:8], epochs=1)
        assert trainer.directory is not None
        kept = sorted(path.name for path in (tmp_path / "c").iterdir())
        model.bias.data[:] = 1.0
        before: dict[str, Tensor] = {}
        trainer.callbacks = []
        run = trainer.step.program.run

        def watched(*arguments: Any, **options: Any) -> object:
            done = run(*arguments, **options)
            before.update({k: v.clone() for k, v in model.state_dict().items()})
            return done

        trainer.step.program.run = watched  # type: ignore[method-assign, assignment]
        with pytest.raises(DataError, match=r"row 41 of .*rows.parquet, in batch \d of epoch \d"):
            trainer.fit(tmp_path / "rows.parquet", epochs=1)
        after = model.state_dict()
        assert before
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == kept
    finally:
        unregister_loss("breaks")


def table_of_requests(sizes: list[int]) -> pa.Table:
    request = np.repeat(np.arange(len(sizes)), sizes)
    return pa.table(
        {
            "request": [f"r{n}" for n in request],
            "job": [f"{n % 5}" for n in range(len(request))],
            "age": np.arange(len(request), dtype=np.float64),
            "click": (np.arange(len(request)) % 3 == 0).astype(np.float64),
        }
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("group_rows", [3, 7, 1000])
def test_a_request_is_in_one_batch(shuffle: bool, group_rows: int, tmp_path: Path) -> None:
    sizes = [1, 5, 2, 30, 4, 4, 1, 1, 8, 3, 6]
    table = table_of_requests(sizes)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=group_rows)
    spec = wd.FeatureSpec(
        label="click", group="request", features=[wd.categorical("job"), wd.numeric("age")]
    )
    transform = Transform(wd.fit_schema(spec, table))
    with open_source(tmp_path / "rows.parquet", columns=transform.columns()) as source:
        requests = RequestSource(source, "request")
        assert requests.num_rows == len(sizes)
        plan = EpochPlan(requests, batch_size=3, seed=1, epoch=0, shuffle=shuffle, pool_rows=4)
        batches = list(BatchReader(requests, request_encoder(transform), plan))
        later = list(BatchReader(requests, request_encoder(transform), plan, start_batch=2))
    keys = [set(batch.group_B.tolist()) for batch in batches]  # type: ignore[union-attr]
    assert [len(one) for one in keys] == [3, 3, 3, 2]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(sizes)
    ages = np.concatenate([batch.labels_BL for batch in batches])  # type: ignore[misc]
    assert len(ages) == sum(sizes) and ages.sum() == table["click"].to_numpy().sum()
    for one, two in zip(batches[2:], later, strict=True):
        np.testing.assert_array_equal(one.ids_N, two.ids_N)
    if not shuffle:
        whole = transform(table)
        np.testing.assert_array_equal(np.concatenate([b.ids_N for b in batches]), whole.ids_N)


def test_requests_that_lie_apart_or_are_absent_are_refused() -> None:
    table = table_of_requests([2, 2, 1])
    apart = pa.concat_tables([table, table.slice(0, 1)])
    with open_source(apart) as source, pytest.raises(DataError, match=r"row 5 .*'r0' again"):
        RequestSource(source, "request")
    null = table.set_column(0, "request", pa.array(["a", None, "b", "b", "c"]))
    with open_source(null) as source, pytest.raises(DataError, match=r"row 1 .*got null"):
        RequestSource(source, "request")


@pytest.mark.parametrize("loss", ["softmax", "pairs"])
def test_a_ranking_finds_what_differs_within_a_request(loss: str) -> None:
    random = np.random.default_rng(1)
    data = []
    for request in range(150):
        level = float(random.normal()) * 3  # says how many are clicked, and nothing of which
        strength = random.normal(size=5)
        clicked = int(strength.argmax())
        data += [
            {"request": request, "level": level, "x": float(s), "click": float(i == clicked)}
            for i, s in enumerate(strength)
        ]
    spec = wd.FeatureSpec(label="click", group="request", features=wd.numeric("level", "x"))
    head = {"kind": "ranking", "loss": loss}
    model = wd.WideDeep(wd.fit_schema(spec, data), hidden_units=[8], head=head)
    trainer = wd.Trainer(model, batch_size=50, progress=False)
    before = trainer.evaluate(data)
    trainer.fit(data, epochs=20)
    after = trainer.evaluate(data)
    assert after["loss"] < 0.6 * before["loss"]
    assert after["gauc"] > 0.9 and "log_loss" not in after and "auc" not in after


def test_a_head_and_its_label_must_agree() -> None:
    data = rows()
    for heads, label, message in [
        ("ranking", "click", "group"),
        ("multilabel", "click", "column of single values"),
        ("binary", "tags", "column of lists"),
        ("poison", "click", "did you mean 'poisson'"),
        ({"kind": "tweedie", "power": 2.5}, "click", "power"),
        ({"kind": "binary", "gamma": 1.0}, "click", "loss='focal'"),
        ({"kind": "binary", "gama": 1.0}, "click", "did you mean 'gamma'"),
        ({"kind": "binary", "through": "buy"}, "click", "through='buy'"),
    ]:
        data_of = [row for row in data if row[label] is not None]
        with pytest.raises(ConfigError, match=message):
            model_of(data_of, heads, label=label)  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match="got null"):
        model_of(data, None, label="tags")  # type: ignore[arg-type]
    negative = [{**row, "price": -1.0 if i == 7 else 1.0} for i, row in enumerate(data)]
    model = model_of(negative, "poisson", label="price")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"label 'price' \(row 7 of .*got -1, expected a number"):
        wd.Trainer(model, batch_size=8, progress=False).fit(negative)
