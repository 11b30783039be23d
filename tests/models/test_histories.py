"""Towers over histories against loops over single examples and events, without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from widedeep import models
from widedeep.errors import ConfigError
from widedeep.models import DeepInput, SequenceInput
from widedeep.models.histories import Events, History, HistoryConfig
from widedeep.models.history_blocks import Dice, TransformerLayer
from widedeep.models.tower import PaddedSequence

LENGTHS = [3, 0, 6, 1]
WIDTH, MATCHED = 5, 3
HISTORY = History(
    sequences=("seen",), targets=("ad",), width=WIDTH, matched=MATCHED, maxlen=6
)  # fmt: skip
Reference = Callable[[Any, Tensor, Tensor], Tensor]


def dice(module: Dice, sums: Tensor) -> Tensor:
    gate = 1 / (1 + torch.exp(-(sums - module.mean_H) / (module.variance_H + 1e-8).sqrt()))
    return gate * sums + (1 - gate) * module.alpha_H * sums


def linear(layer: Any, x: Tensor) -> Tensor:
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def softmax(scores: list[Tensor]) -> list[Tensor]:
    powers = [torch.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def din(module: Any, events: Tensor, query: Tensor) -> Tensor:
    scores = []
    for event in events:
        key = event[:MATCHED]
        hidden = torch.cat([query, event, query - key, query * key])
        for layer, activation in zip(module.unit.layers, module.unit.dices, strict=True):
            hidden = dice(activation, linear(layer, hidden))
        scores.append(linear(module.score, hidden)[0])
    weights = softmax(scores) if module.softmax else scores
    total = torch.zeros(WIDTH)
    for weight, event in zip(weights, events, strict=True):
        total = total + weight * event
    return total


def gru(module: Any, events: list[Tensor], weights: list[Tensor] | None) -> list[Tensor]:
    size = module.width
    state, states = torch.zeros(size), []
    for step, event in enumerate(events):
        of_event, of_state = linear(module.input, event), linear(module.state, state)
        update = torch.sigmoid(of_event[:size] + of_state[:size])
        reset = torch.sigmoid(of_event[size : 2 * size] + of_state[size : 2 * size])
        new = torch.tanh(of_event[2 * size :] + reset * of_state[2 * size :])
        if weights is not None:
            update = weights[step] * update
        state = (1 - update) * state + update * new
        states.append(state)
    return states


def dien(module: Any, events: Tensor, query: Tensor) -> Tensor:
    states = gru(module.extractor, list(events), None)
    if not states:
        return torch.zeros(module.out_features)
    weights = softmax([state @ linear(module.relevance, query) for state in states])
    return gru(module.evolution, states, weights)[-1]


def normed(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / ((centred**2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def transformer_layer(layer: TransformerLayer, places: list[Tensor]) -> list[Tensor]:
    attention = layer.attention
    heads, width = attention.heads, attention.head_width
    parts = [linear(attention.input, x).view(3, heads, width) for x in places]
    out = []
    for place, part in zip(places, parts, strict=True):
        mixed = []
        for head in range(heads):
            weights = softmax([part[0, head] @ other[1, head] / width**0.5 for other in parts])
            mixed.append(sum(w * o[2, head] for w, o in zip(weights, parts, strict=True)))
        taken = normed(layer.norms[0], place + linear(attention.output, torch.cat(mixed)))
        inner = linear(layer.inner, taken)
        inner = torch.where(inner > 0, inner, 0.01 * inner)
        out.append(normed(layer.norms[1], taken + linear(layer.outer, inner)))
    return out


def bst(module: Any, events: Tensor, query: Tensor) -> Tensor:
    positions = module.positions.weight
    places = [event + positions[len(events) - i] for i, event in enumerate(events)]
    places.append(torch.cat([query, torch.zeros(WIDTH - MATCHED)]) + positions[0])
    for layer in module.layers:
        places = transformer_layer(layer, places)
    return places[-1]


def encoder(module: Any, events: Tensor, query: Tensor) -> Tensor:
    if not len(events):
        return torch.zeros(WIDTH)
    positions = module.positions.weight
    places = [event + positions[len(events) - 1 - i] for i, event in enumerate(events)]
    for layer in module.layers:
        places = transformer_layer(layer, places)
    if module.pooling == "last":
        return places[-1]
    stacked = torch.stack(places)
    return stacked.mean(0) if module.pooling == "mean" else stacked.max(0).values


def pooling(module: Any, events: Tensor, query: Tensor) -> Tensor:
    if not len(events):
        return torch.zeros(WIDTH)
    if module.attention is None:
        return events.mean(0) if module.pooling == "mean" else events.max(0).values
    hidden = [torch.tanh(linear(module.attention.layer, event)) for event in events]
    weights = softmax([linear(module.attention.score, x)[0] for x in hidden])
    return sum((w * e for w, e in zip(weights, events, strict=True)), torch.zeros(WIDTH))


CASES: dict[str, tuple[HistoryConfig, Reference]] = {
    "din": (models.DIN(attention_units=(4, 3)), din),
    "din-softmax": (models.DIN(attention_units=(4,), softmax=True), din),
    "dien": (models.DIEN(state_width=4), dien),
    "bst": (models.BST(layers=2, heads=2, feed_forward=7), bst),
    "encoder-mean": (models.HistoryTransformer(layers=2, heads=3), encoder),
    "encoder-max": (models.HistoryTransformer(layers=1, pooling="max"), encoder),
    "encoder-last": (models.HistoryTransformer(layers=1, pooling="last"), encoder),
    "mean": (models.HistoryPooling(), pooling),
    "max": (models.HistoryPooling(pooling="max"), pooling),
    "attention": (models.HistoryPooling(pooling="attention", attention_width=4), pooling),
}


@pytest.fixture(autouse=True)
def _float64() -> Any:
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(config: HistoryConfig) -> nn.Module:
    module = config.summary(HISTORY)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.uniform_(0.2, 0.9) if tensor.ndim == 1 else tensor.normal_(0, 0.7)
    return module


def padded(flat_NE: Tensor, steps: int, garbage: float) -> tuple[Tensor, Tensor]:
    """Events as (B, T, E), with garbage in padding, and their mask."""
    mask_BT = torch.arange(steps) < torch.tensor(LENGTHS)[:, None]
    keys_BTE = torch.full((len(LENGTHS), steps, WIDTH), garbage)
    return keys_BTE.masked_scatter(mask_BT[:, :, None], flat_NE), mask_BT


@pytest.mark.parametrize("case", CASES)
def test_a_summary_is_what_a_loop_over_events_gives(case: str) -> None:
    config, reference = CASES[case]
    module = made(config).eval()
    flat_NE = torch.randn(sum(LENGTHS), WIDTH, requires_grad=True)
    query_BE = torch.randn(len(LENGTHS), MATCHED, requires_grad=True)
    leaves = [flat_NE, query_BE, *module.parameters()]
    probe = torch.randn(len(LENGTHS), module.out_features)  # type: ignore[arg-type]

    pairs = zip(flat_NE.split(LENGTHS), query_BE, strict=True)
    expected = torch.stack([reference(module, events, query) for events, query in pairs])
    gradients = torch.autograd.grad((expected * probe).sum(), leaves, allow_unused=True)
    for steps, garbage in ((6, 0.0), (6, 1e3), (9, -77.0)):
        if steps > 6 and "encoder" in case:
            steps = 6 + 1  # its positions are bounded, padding is not
        keys_BTE, mask_BT = padded(flat_NE, steps, garbage)
        result = module(Events(keys_BTE, mask_BT, query_BE))
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
        own = torch.autograd.grad((result * probe).sum(), leaves, allow_unused=True)
        for gradient, other in zip(own, gradients, strict=True):
            zero = torch.zeros(())
            a, b = (zero if g is None else g for g in (gradient, other))
            torch.testing.assert_close(*torch.broadcast_tensors(a, b), rtol=1e-9, atol=1e-11)


def test_dice_in_training_counts_no_padding() -> None:
    module, alone = Dice(3), Dice(3)
    sums_NH = torch.randn(sum(LENGTHS), 3)
    mask_BT = torch.arange(8) < torch.tensor(LENGTHS)[:, None]
    sums_BTH = torch.full((len(LENGTHS), 8, 3), 1e6).masked_scatter(mask_BT[:, :, None], sums_NH)
    gate = torch.sigmoid((sums_NH - sums_NH.mean(0)) / (sums_NH.var(0, unbiased=False)).sqrt())
    with torch.no_grad():
        result = module(sums_BTH, mask_BT)[mask_BT]
        torch.testing.assert_close(result, gate * sums_NH, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(alone(sums_NH), result)
        torch.testing.assert_close(module.mean_H, 0.1 * sums_NH.mean(0))
        before = module.mean_H.clone()
        module(sums_BTH, torch.zeros_like(mask_BT))  # a batch without an event moves nothing
    torch.testing.assert_close(module.mean_H, before)


def test_padding_may_hold_anything_and_be_of_any_length() -> None:
    flat_ND = torch.randn(sum(LENGTHS), WIDTH, requires_grad=True)
    offsets = torch.tensor([0, *np.cumsum(LENGTHS)])
    weights_N = torch.rand(sum(LENGTHS))
    sequence = SequenceInput(flat_ND, offsets, weights_N=weights_N)
    values_BTD, mask_BT = sequence.padded()
    expected, expected_mask = padded(flat_ND, 6, 0.0)
    torch.testing.assert_close(values_BTD, expected)
    assert torch.equal(mask_BT, expected_mask) and sequence.lengths_B.tolist() == LENGTHS
    assert torch.equal(sequence.padded_weights()[mask_BT], weights_N)
    (gradient,) = torch.autograd.grad((values_BTD**2).sum(), [flat_ND])
    torch.testing.assert_close(gradient, 2 * flat_ND)
    assert SequenceInput(flat_ND[:0], torch.zeros(3, dtype=torch.int64)).padded()[0].shape == (
        2, 1, WIDTH,
    )  # fmt: skip

    history = History(sequences=("seen",), targets=(), width=WIDTH, matched=0, maxlen=9)
    garbage, mask = padded(flat_ND, 9, float("nan"))
    long = PaddedSequence("seen", garbage, mask, mask.double(), set())
    rows = torch.zeros(len(LENGTHS), 0)
    for sequence_input in (sequence, long):
        inputs = DeepInput(rows, {}, rows, sequences={"seen": sequence_input})
        events = history.events(inputs)
        torch.testing.assert_close(events.keys_BTE[:, :6], expected)
        assert not events.keys_BTE[:, 6:].any()


def test_the_weights_of_events_multiply_them() -> None:
    flat_ND, weights_N = torch.randn(sum(LENGTHS), WIDTH), torch.rand(sum(LENGTHS))
    offsets = torch.tensor([0, *np.cumsum(LENGTHS)])
    sequences = {"seen": SequenceInput(flat_ND, offsets, weights_N=weights_N)}
    rows = torch.zeros(len(LENGTHS), 0)
    inputs = DeepInput(rows, {}, rows, sequences=sequences)
    for weighted, factor in ((frozenset({"seen"}), weights_N[:, None]), (frozenset(), 1.0)):
        history = History(
            sequences=("seen",), targets=(), width=WIDTH, matched=0, maxlen=6, weighted=weighted
        )
        events = history.events(inputs)
        torch.testing.assert_close(events.keys_BTE[events.mask_BT], flat_ND * factor)
    spec_features = [*wd.categorical("ad", table="ad"), *seen(weights="w")]
    tower: Any = model_of(spec_features, "din").towers["din"]
    assert tower.histories[0].weighted == {"seen"}


ROWS = [
    {"ad": "ab"[i % 2], "shop": "x", "seen": ["a"], "shops": ["x"], "w": [2.0], "y": i % 2}
    for i in (0, 1)
]


def test_the_auxiliary_loss_is_what_a_loop_over_events_gives() -> None:
    module = made(models.DIEN(state_width=4, next_event_weight=0.5))
    torch.manual_seed(1)
    flat_NE = torch.randn(sum(LENGTHS), WIDTH)
    flat_NE[5] = flat_NE[4]  # which is no negative of itself
    keys_BTE, mask_BT = padded(flat_NE, max(LENGTHS), 0.0)
    losses: list[Tensor] = []
    torch.manual_seed(2)
    module(Events(keys_BTE, mask_BT, torch.randn(len(LENGTHS), MATCHED), own_losses=losses))
    torch.manual_seed(2)
    torch.randn(len(LENGTHS), MATCHED)
    sampled = torch.randint(len(flat_NE), (len(flat_NE),)).tolist()
    expected, start = [], 0
    for length in LENGTHS:
        events = flat_NE[start : start + length]
        states = gru(module.extractor, list(events), None)
        terms = []
        for t in range(length - 1):
            guess = module.next_event.layer.weight @ states[t]
            term = torch.log1p(torch.exp(-guess @ events[t + 1]))
            other = flat_NE[sampled[start + t]]
            if not torch.equal(other, events[t + 1]):
                term = term + torch.log1p(torch.exp(guess @ other))
            terms.append(term)
        expected.append(0.5 * sum(terms) / len(terms) if terms else torch.zeros(()))
        start += length
    torch.testing.assert_close(losses[0], torch.stack(expected))
    empty: list[Tensor] = []
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    module(Events(torch.zeros(2, 3, WIDTH), nothing, torch.zeros(2, MATCHED), own_losses=empty))
    assert empty[0].tolist() == [0.0, 0.0]


def model_of(features: list[Any], tower: Any) -> wd.WideDeep:
    torch.set_default_dtype(torch.float32)
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features), ROWS)
    return wd.WideDeep(schema, deep=tower, embedding_dim=4)


def seen(**options: Any) -> Any:
    return wd.categorical("seen", **{"combiner": None, "table": "ad", "maxlen": 4, **options})


AD = wd.categorical("ad", table="ad")


def test_targets_are_those_that_share_a_table_or_are_named() -> None:
    shops = wd.categorical("shops", combiner=None, maxlen=4, parallel="seen")
    shop = wd.categorical("shop")
    by_table = model_of([AD, seen(), shops, shop], "din").towers["din"].histories
    assert [h.sequences for h in by_table] == [("seen", "shops")]
    assert by_table[0].targets == ("ad",) and by_table[0].matched == 4
    named = {"name": "din", "targets": {"shops": "shop"}}
    both = model_of([AD, seen(), shops, shop], named).towers["din"].histories
    assert both[0].targets == ("ad", "shop") and both[0].matched == 8


@pytest.mark.parametrize(
    ("features", "tower", "message"),
    [
        ([AD], "din", "got no sequence, expected at least one"),
        ([wd.categorical("ad"), seen(table=None)], "din", "got no target for the sequence 'seen'"),
        ([AD, seen()], {"name": "din", "targets": {"ad": "ad"}}, "'ad' in targets, which keeps no"),
        ([AD, seen()], {"name": "din", "targets": {"seen": "adv"}}, "'adv' as the target of"),
        (
            [*AD, *seen(), *wd.categorical("shop", table="ad")],
            "dien",
            "2 features that share the table of 'seen'",
        ),
        (
            [wd.categorical("ad", embedding_dim=3), seen(table=None)],
            {"name": "din", "targets": {"seen": "ad"}},
            r"embeddings of width 4 \('seen'\) and 3",
        ),
        ([AD, seen(maxlen=None)], "bst", r"'seen' of any length.*give the feature one \(maxlen"),
        ([AD, seen()], {"name": "din", "attention_units": []}, "attention_units"),
        ([AD, seen()], {"name": "din", "batch_norm": True}, "batch_norm"),
        ([AD, seen()], {"name": "bst", "heads": 0}, "heads"),
        ([AD, seen()], {"name": "dien", "state_width": 0}, "state_width"),
        ([AD, seen()], {"name": "history_pooling", "pooling": "median"}, "pooling"),
    ],
)
def test_a_tower_that_cannot_be_says_what_to_change(
    features: list[Any], tower: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(features, tower)
