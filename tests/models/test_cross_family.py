"""Cross networks and models of attention over fields equal their equations, as plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.deep_inputs import assert_same_function, make_layout, make_tower, pairs
from widedeep import models
from widedeep.errors import ConfigError
from widedeep.kernels.torch_layers import native_layers

F, D, X = 4, 3, 14  # fields, width of an embedding, columns with the two numbers
SMALL: Any = {"hidden_units": (4,), "activation": "tanh"}


def hidden(tower: Any, x: Tensor, name: str = "hidden") -> Tensor:
    for layer in getattr(tower, name).layers:
        x = torch.tanh(layer(x))
    return x


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()


def beside_or_under(tower: Any, structure: str, crossed: Tensor, x: Tensor) -> Tensor:
    if structure == "stacked":
        return hidden(tower, crossed)
    return torch.cat([crossed, hidden(tower, x)])


@pytest.mark.parametrize("layers", [1, 3])
def test_dcn_of_vectors(layers: int) -> None:
    tower: Any
    tower, inputs = make_tower(models.DCN(layers=layers, **SMALL))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        crossed = x0 = torch.cat([x, numbers])
        for w, b in zip(tower.crosses.weight_LX, tower.crosses.bias_LX, strict=True):
            crossed = x0 * sum(w[k] * crossed[k] for k in range(X)) + b + crossed
        return torch.cat([crossed, hidden(tower, x0)])

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("rank", [None, 2])
def test_dcn_v2(rank: int | None, structure: Any) -> None:
    tower: Any
    tower, inputs = make_tower(models.DCNv2(layers=2, rank=rank, structure=structure, **SMALL))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        crossed = x0 = torch.cat([x, numbers])
        for layer in tower.crosses:
            matrix = layer.up.weight if rank is None else layer.up.weight @ layer.down.weight
            crossed = x0 * (matrix @ crossed + layer.up.bias) + crossed
        return beside_or_under(tower, structure, crossed, x0)

    assert_same_function(tower, inputs, expected)


def test_dcn_of_matrices_is_dcn_v2() -> None:
    first: Any
    first, inputs = make_tower(models.DCN(cross="matrix", layers=2))
    second, _ = make_tower(models.DCNv2(layers=2))
    torch.testing.assert_close(first(inputs), second(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn_mix(structure: Any) -> None:
    experts, rank = 3, 2
    tower: Any
    tower, inputs = make_tower(
        models.DCNMix(layers=2, experts=experts, rank=rank, structure=structure, **SMALL)
    )

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        crossed = x0 = torch.cat([x, numbers])
        for layer in tower.crosses.layers:
            scores = [(tower.crosses.gate.weight[e] @ crossed).exp() for e in range(experts)]
            mixed = torch.zeros_like(crossed)
            for e in range(experts):
                own = slice(rank * e, rank * e + rank)
                low = torch.tanh(layer.down.weight[own] @ crossed)
                core = torch.tanh(layer.core_ERR[e].T @ low)
                expert = x0 * (layer.up.weight[:, own] @ core + layer.up.bias)
                mixed = mixed + scores[e] / sum(scores) * expert
            crossed = mixed + crossed
        return beside_or_under(tower, structure, crossed, x0)

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_gdcn(structure: Any) -> None:
    tower: Any
    tower, inputs = make_tower(models.GDCN(layers=2, structure=structure, **SMALL))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        crossed = x0 = torch.cat([x, numbers])
        for layer in tower.crosses:
            gate = 1 / (1 + (-(layer.gate.weight @ crossed)).exp())
            crossed = x0 * (layer.cross.weight @ crossed + layer.cross.bias) * gate + crossed
        return beside_or_under(tower, structure, crossed, x0)

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("split_half", [True, False])
def test_xdeepfm(split_half: bool) -> None:
    config = models.XDeepFM(
        cin_units=(5, 3, 2), split_half=split_half, cin_activation="tanh", **SMALL
    )
    tower: Any
    tower, inputs = make_tower(config)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        x0 = maps = x.view(F, D)
        sums = []
        for depth, layer in enumerate(tower.cin.layers):
            out = []
            for h in range(len(layer.weight)):
                total = layer.bias[h] + torch.zeros(D, dtype=torch.float64)
                for i in range(len(maps)):
                    for j in range(F):
                        total = total + layer.weight[h, i * F + j] * maps[i] * x0[j]
                out.append(torch.tanh(total))
            maps = torch.stack(out)
            if split_half and depth < 2:
                half = len(maps) // 2
                maps, own = maps[:half], maps[half:]
            else:
                own = maps
            sums.append(own.sum(1))
        return torch.cat([*sums, hidden(tower, torch.cat([x, numbers]))])

    assert_same_function(tower, inputs, expected)
    assert tower(inputs).shape[1] == 4 + (3 + 2 + 2 if split_half else 5 + 3 + 2)


@pytest.mark.parametrize("options", [{}, {"head_width": 2, "scaled": True}])
def test_autoint(options: Any) -> None:
    heads, units = 3, options.get("head_width", 1)
    tower: Any
    tower, inputs = make_tower(models.AutoInt(layers=2, heads=heads, **options, **SMALL))
    scale = units**-0.5 if "scaled" in options else 1

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v = x.view(F, D)
        for layer in tower.attention:
            q, k, value, residual = layer.weight.chunk(4)
            rows = []
            for i in range(F):
                mixed = []
                for h in range(heads):
                    own = slice(units * h, units * h + units)
                    s = [(scale * (q[own] @ v[i]) @ (k[own] @ v[j])).exp() for j in range(F)]
                    terms = [s[j] / sum(s) * (value[own] @ v[j]) for j in range(F)]
                    mixed.append(torch.stack(terms).sum(0))
                rows.append(torch.relu(torch.cat(mixed) + residual @ v[i]))
            v = torch.stack(rows)
        return torch.cat([v.flatten(), hidden(tower, torch.cat([x, numbers]))])

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("bilinear", ["all", "each", "interaction"])
def test_fibinet(bilinear: Any) -> None:
    tower: Any
    tower, inputs = make_tower(models.FiBiNET(bilinear=bilinear, reduction=2, **SMALL))
    with torch.no_grad():  # no unit of the gates may be off for all examples
        for parameter in tower.gates.parameters():
            parameter.abs_()
    inputs.concat_BX.detach().abs_()

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v, weight = x.view(F, D), tower.pairs.weight_DWD
        z = torch.stack([v[i].sum() / D for i in range(F)])
        gates = torch.relu(tower.gates.excite.weight @ torch.relu(tower.gates.squeeze.weight @ z))
        plain, weighed = [], []
        for p, (i, j) in enumerate(pairs()):
            w = weight[:, {"all": 0, "each": i, "interaction": p}[bilinear]]
            plain.append((v[i] @ w) * v[j])
            weighed.append(((gates[i] * v[i]) @ w) * (gates[j] * v[j]))
        return hidden(tower, torch.cat([*weighed, *plain, numbers]))

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("beside_units", [(), (3,)])
def test_afn(beside_units: Any) -> None:
    config = models.AFN(log_neurons=5, beside_units=beside_units, **SMALL)
    tower: Any
    tower, inputs = make_tower(config, dim=4)
    half = 2 if beside_units else 4
    v_all = inputs.concat_BX[:, : F * 4].reshape(-1, F, 4)[:, :, :half]

    def normed(norm: Any, values: Tensor, index: int, value: Tensor) -> Tensor:
        """Normalise one value by the statistics of the whole batch."""
        mean, variance = values.mean(), values.var(correction=0)
        return (value - mean) / (variance + 1e-5).sqrt() * norm.weight[index] + norm.bias[index]

    def neurons() -> Tensor:
        """All products, before and after their norm: the norms look at the whole batch."""
        logs = v_all.abs().log()
        layer = tower.neurons
        logs = torch.stack(
            [normed(layer.field_norm, logs[:, i], i, logs[:, i]) for i in range(F)], 1
        )
        out = []
        for j in range(5):
            products = torch.exp(sum(layer.exponents_JF[j, i] * logs[:, i] for i in range(F)))
            out.append(normed(layer.neuron_norm, products, j, products))
        return torch.stack(out, 1)

    rows = iter(neurons())

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        result = hidden(tower, next(rows).flatten())
        if beside_units:
            own = torch.cat([x.view(F, 4)[:, half:].flatten(), numbers])
            result = torch.cat([result, hidden(tower, own, "beside")])
        return result

    assert_same_function(tower, inputs, expected)


def test_afn_reads_zeros() -> None:
    tower, inputs = make_tower(models.AFN(log_neurons=5, **SMALL))
    with torch.no_grad():
        inputs.concat_BX[0].zero_()
    result = tower(inputs)
    result.sum().backward()
    assert result.isfinite().all()
    assert inputs.concat_BX.grad is not None and inputs.concat_BX.grad.isfinite().all()


@pytest.mark.parametrize("n_numbers", [2, 0])
def test_dlrm(n_numbers: int) -> None:
    config = models.DLRM(bottom_units=(5,), **SMALL)
    tower: Any
    tower, inputs = make_tower(config, n_numbers=n_numbers)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        vectors = list(x.view(F, D))
        if n_numbers:
            vectors.insert(0, hidden(tower, numbers, "bottom"))
        products = torch.stack([vectors[i] @ vectors[j] for i, j in pairs(len(vectors))])
        first = vectors[:1] if n_numbers else []
        return hidden(tower, torch.cat([*first, products]), "top")

    assert_same_function(tower, inputs, expected)


def mask_block(block: Any, x: Tensor, h: Tensor) -> Tensor:
    mask = block.project(torch.relu(block.aggregate(x)))
    normed = layer_norm(block.linear.weight @ (mask * h))
    return torch.tanh(normed * block.norm.weight + block.norm.bias)


@pytest.mark.parametrize("structure", ["parallel", "serial"])
def test_masknet(structure: Any) -> None:
    config = models.MaskNet(
        structure=structure, blocks=2, block_units=5, hidden_units=(6, 4), activation="tanh"
    )
    tower: Any
    tower, inputs = make_tower(config)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        weight, bias = tower.norm.weight_FD, tower.norm.bias_FD
        normed = [layer_norm(v) * weight[f] + bias[f] for f, v in enumerate(x.view(F, D))]
        x, h = torch.cat([x, numbers]), torch.cat([*normed, numbers])
        if structure == "parallel":
            return hidden(tower, torch.cat([mask_block(block, x, h) for block in tower.blocks]))
        for block in tower.blocks:
            h = mask_block(block, x, h)
        return h

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("n_logits", [1, 2])
@pytest.mark.parametrize("gated", [True, False])
def test_finalmlp(n_logits: int, gated: bool) -> None:
    heads = 2
    gates: Any = {"gate_units": (3,), "first_context": ("f2",)} if gated else {"gate_units": ()}
    config = models.FinalMLP(second_units=(5, 6), heads=heads, **gates, **SMALL)
    tower: Any
    tower, inputs = make_tower(config, n_logits=n_logits)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v, x = x.view(F, D), torch.cat([x, numbers])
        first = second = x
        if gated:
            contexts = [v[2], tower.gates[1].context[0]]
            first, second = (
                x * 2 * torch.sigmoid(gate.output(hidden(gate, context)))
                for gate, context in zip(tower.gates, contexts, strict=True)
            )
        left, right = hidden(tower, first, "first"), hidden(tower, second, "second")
        logits = []
        for c in range(n_logits):
            total = tower.fusion.linear.weight[c] @ torch.cat([left, right])
            for h in range(heads):
                matrix = tower.fusion.weight_HLR[h][:, 3 * c : 3 * c + 3]
                total = total + left[2 * h : 2 * h + 2] @ matrix @ right[3 * h : 3 * h + 3]
            logits.append(total + tower.fusion.linear.bias[c])
        return torch.stack(logits)

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize(("n_numbers", "linear"), [(2, 3), (2, 4), (0, 2)])
def test_wukong(n_numbers: int, linear: int) -> None:
    config = models.WuKong(
        layers=2, fm_vectors=2, linear_vectors=linear, rank=2, fm_units=(4,), **SMALL
    )
    tower: Any
    tower, inputs = make_tower(config, n_numbers=n_numbers)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v = x.view(F, D)
        if n_numbers:
            v = torch.cat([v, tower.numbers(numbers)[None]])
        for layer in tower.layers:
            fm = layer.factorization
            mixtures = [sum(y[n] * v[n] for n in range(len(v))) for y in fm.mixtures.weight]
            products = torch.stack([row @ mixture for row in v for mixture in mixtures])
            products = layer_norm(products) * fm.norm.weight + fm.norm.bias
            own = fm.output(torch.tanh(fm.hidden.layers[0](products))).view(2, D)
            both = torch.cat([own, layer.compress.weight @ v])
            both = both + (v if layer.residual is None else layer.residual.weight @ v)
            v = torch.stack([layer_norm(row) for row in both])
            v = v * layer.norm.weight + layer.norm.bias
        return hidden(tower, v.flatten())

    assert_same_function(tower, inputs, expected)
    assert [layer.residual is None for layer in tower.layers] == [linear != 4, True]


NEED_ONE_WIDTH = ["xdeepfm", "autoint", "fibinet", "afn", "dlrm", "masknet", "wukong"]
NEED_NO_FIELD = ["dcn", "dcn_v2", "dcn_mix", "gdcn", "finalmlp"]


@pytest.mark.parametrize("name", NEED_ONE_WIDTH)
def test_a_model_of_fields_refuses_widths_that_differ(name: str) -> None:
    layout = make_layout({"a": 4, "b": 2, "c": 4}, {"": slice(0, 1)})
    says = rf"tower '{name}': got embeddings of the widths 4 \(a, c\), 2 \(b\)"
    with pytest.raises(ConfigError, match=says):
        models.registered_towers()[name]().make(layout)


@pytest.mark.parametrize("name", NEED_NO_FIELD)
@pytest.mark.parametrize("dims", [{}, {"a": 4, "b": 2}, {"a": 4}])
def test_a_model_of_columns_reads_any(name: str, dims: dict[str, int]) -> None:
    layout = make_layout(dims, {"": slice(0, 1)})
    tower = models.registered_towers()[name]().make(layout)
    rows = torch.randn(3, layout.width)
    inputs = models.DeepInput(rows, layout.columns, rows[:, layout.dense])
    assert tower(inputs).isfinite().all()


@pytest.mark.parametrize(
    ("name", "fields", "n_numbers", "works"),
    [
        *((name, 1, 2, False) for name in ("xdeepfm", "autoint", "fibinet", "afn")),
        *((name, 2, 0, True) for name in NEED_ONE_WIDTH),
        *((name, 1, 2, True) for name in ("dlrm", "masknet", "wukong")),
        *((name, 1, 0, name == "masknet") for name in ("dlrm", "masknet", "wukong")),
        *((name, 0, 2, False) for name in NEED_ONE_WIDTH),
    ],
)
def test_a_model_says_how_many_fields_it_needs(
    name: str, fields: int, n_numbers: int, works: bool
) -> None:
    heads = {"": slice(0, 1)}
    layout = make_layout({f"f{i}": 4 for i in range(fields)}, heads, n_numbers=n_numbers)
    config = models.registered_towers()[name]()
    if not works:
        with pytest.raises(ConfigError, match=f"tower '{name}': got {fields} embedded features"):
            config.make(layout)
        return
    rows = torch.randn(3, layout.width)
    inputs = models.DeepInput(rows, layout.columns, rows[:, layout.dense])
    assert config.make(layout)(inputs).isfinite().all()


def make(config: models.TowerConfig, dim: int = 6) -> Callable[[], object]:
    layout = make_layout({f"f{i}": dim for i in range(F)}, {"": slice(0, 1)})
    return lambda: config.make(layout)


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: models.DCN(layers=0), "tower 'dcn': got layers=0"),
        (lambda: models.DCNv2(rank=0), "tower 'dcn_v2': got rank=0"),
        (lambda: models.DCNMix(experts=0), "tower 'dcn_mix': got experts=0"),
        (lambda: models.XDeepFM(cin_units=()), r"got cin_units=\[\]"),
        (lambda: models.XDeepFM(cin_units=(1, 8)), r"cin_units=\[1, 8\] and split_half"),
        (lambda: models.AutoInt(heads=0), "tower 'autoint': got heads=0"),
        (make(models.AutoInt(heads=4)), "got heads=4 and embeddings of width 6"),
        (lambda: models.FiBiNET(reduction=0), "tower 'fibinet': got reduction=0"),
        (lambda: models.AFN(log_neurons=0), "tower 'afn': got log_neurons=0"),
        (make(models.AFN(beside_units=(2,)), 3), "got embeddings of width 3, expected an even"),
        (lambda: models.DLRM(bottom_units=(0,)), "tower 'dlrm': got bottom_units=0"),
        (lambda: models.MaskNet(reduction_ratio=0.0), "got reduction_ratio=0.0"),
        (lambda: models.MaskNet(structure="serial", batch_norm=True), "and batch_norm=True"),
        (lambda: models.FinalMLP(heads=3), r"got heads=3 and streams .* are \[128\]"),
        (lambda: models.FinalMLP(gate_units=(), first_context=("f1",)), "and no gate_units"),
        (make(models.FinalMLP(first_context=("f9",))), "first_context with 'f9'.*known: 'f0'"),
        (lambda: models.WuKong(rank=0), "tower 'wukong': got rank=0"),
        (lambda: models.WuKong(fm_units=()), r"got fm_units=\[\]"),
    ],
)
def test_options_outside_their_range(mistake: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        mistake()


def test_a_rank_above_the_width_is_allowed() -> None:
    tower, inputs = make_tower(models.DCNv2(rank=100))
    assert tower(inputs).isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        models.XDeepFM(cin_units=(6, 4)),
        models.GDCN(layers=2),
        models.DCNMix(rank=64, layers=2),
        models.MaskNet(reduction_ratio=4.0, block_units=128),
    ],
    ids=lambda config: config.name,
)
def test_a_training_step_has_the_gradients_of_torch(config: models.TowerConfig) -> None:
    layout = make_layout({f"f{i}": 22 for i in range(6)}, {"": slice(0, 1)})
    torch.manual_seed(0)
    tower = config.make(layout)
    rows = torch.randn(40, layout.width, requires_grad=True)

    def gradients() -> tuple[Tensor, ...]:
        result = tower(models.DeepInput(rows, layout.columns, rows[:, layout.dense]))
        return torch.autograd.grad(result.square().sum(), [rows, *tower.parameters()])

    expected = gradients()
    with native_layers(1):
        stepped = gradients()
    for gradient, reference in zip(stepped, expected, strict=True):
        torch.testing.assert_close(
            gradient, reference, rtol=1e-3, atol=1e-4 * float(reference.abs().max())
        )
