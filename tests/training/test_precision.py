from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import widedeep as wd
from tests.training.test_dense import make
from tests.training.test_trainer import (
    assert_same_bits,
    make_spec,
    make_table,
    make_trainer,
    state_of,
)
from widedeep.errors import CheckpointError, ConfigError
from widedeep.kernels import has_bf16_products
from widedeep.models.mlp import MLPTower
from widedeep.models.tower import DeepInput
from widedeep.training.dense import NativeMLP, TorchMLP, has_fast_bf16, resolve_precision

ENGINES = [
    partial(TorchMLP, bf16=True),
    pytest.param(
        partial(NativeMLP, bf16=True),
        marks=pytest.mark.skipif(not has_bf16_products(), reason="no AVX512_BF16 here"),
    ),
]


@pytest.fixture(scope="module")
def schema() -> wd.Schema:
    return wd.fit_schema(make_spec(), make_table())


@pytest.mark.parametrize("hidden", [[8], [16, 8], [33, 40, 3]])
@pytest.mark.parametrize("logits", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_is_near_the_float64_oracle(
    hidden: list[int], logits: int, engine: Callable[[MLPTower, nn.Linear], NativeMLP | TorchMLP]
) -> None:
    tower, output = make(13, hidden, logits)
    mixed = engine(tower, output)
    exact, exact_output = make(13, hidden, logits)
    exact.double()
    exact_output.double().load_state_dict(output.state_dict())
    torch.manual_seed(1)
    for rows in (512, 200, 700):  # buffers are used again, grown and shrunk
        concat = torch.randn(rows, 13)
        grad = torch.randn(rows, logits)
        leaf = concat.double().requires_grad_()
        expected = exact_output(exact(DeepInput(leaf, {}, leaf[:, :0])))
        expected.backward(grad.double())
        # A factor's error is at most 2**-9 of it. A unit near 0 may fall on the other side in a few
        # rows, whose gradients then differ at large.
        assert _distance(mixed.forward(concat), expected) < 0.02
        assert leaf.grad is not None
        error_B = (mixed.backward(grad).double() - leaf.grad).norm(dim=1)
        assert float((error_B / leaf.grad.norm(dim=1).clamp_min(1e-3)).median()) < 0.01
        mixed.finish()
        found = [*tower.parameters(), *output.parameters()]
        wanted = [*exact.parameters(), *exact_output.parameters()]
        for got, want in zip(found, wanted, strict=True):
            assert got.grad is not None and got.grad.dtype == torch.float32
            assert _distance(got.grad, want.grad) < 0.2
            want.grad = None


def _distance(got: torch.Tensor, wanted: torch.Tensor | None) -> float:
    assert wanted is not None
    return float(((got.double() - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("threads", [1, 2])
def test_bf16_gives_the_same_bits_again(schema: wd.Schema, threads: int) -> None:
    runs = []
    for _ in range(2):
        trainer = make_trainer(schema, precision="bf16", threads=threads)
        trainer.fit(make_table(), epochs=2)
        runs.append(state_of(trainer))
    assert_same_bits(*runs)
    full = make_trainer(schema, threads=threads)
    full.fit(make_table(), epochs=2)
    name = "module/towers.mlp.layers.0.weight"
    weight, bf16 = state_of(full)[name], runs[0][name]
    assert weight.tobytes() != bf16.tobytes()
    assert np.linalg.norm(weight - bf16) < 0.1 * np.linalg.norm(weight)


@pytest.mark.parametrize("stop", [1, 5, 10, 13])
def test_bf16_resumes_bit_for_bit(schema: wd.Schema, tmp_path: Path, stop: int) -> None:
    whole = make_trainer(schema, precision="bf16")
    whole.fit(make_table(), epochs=2)
    make_trainer(schema, precision="bf16", checkpoints=tmp_path).fit(
        make_table(), epochs=2, steps=stop
    )
    again = make_trainer(schema, precision="bf16", checkpoints=tmp_path)
    again.fit(make_table(), epochs=2, resume=True)
    assert_same_bits(state_of(whole), state_of(again))


def test_a_checkpoint_remembers_its_precision(schema: wd.Schema, tmp_path: Path) -> None:
    trainer = make_trainer(schema, precision="bf16", checkpoints=tmp_path)
    trainer.fit(make_table(), steps=2)
    with pytest.raises(CheckpointError, match="run in bf16, but this trainer computes in fp32"):
        make_trainer(schema, checkpoints=tmp_path).fit(make_table(), resume=True)


def test_bf16_reaches_the_quality_of_fp32(schema: wd.Schema) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(schema, precision=precision)
        trainer.fit(make_table(), epochs=8)
        found[precision] = trainer.evaluate(make_table(seed=1))
    assert found["bf16"]["auc"] > 0.75
    assert abs(found["bf16"]["auc"] - found["fp32"]["auc"]) < 0.01


def test_other_towers_compute_in_bf16_too(schema: wd.Schema) -> None:
    seen = []

    class Tower(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(width, 3)

        def forward(self, inputs: DeepInput) -> torch.Tensor:
            out: torch.Tensor = self.linear(inputs.concat_BX)
            seen.append(out.dtype)
            return out

    model = wd.WideDeep(schema, towers={"t": lambda layout: Tower(layout.width)}, embedding_dim=4)
    seen.clear()
    trainer = wd.Trainer(model, precision="bf16", batch_size=64, threads=1, progress=False)
    trainer.fit(make_table(), epochs=6)
    assert seen and set(seen) == {torch.bfloat16}
    assert trainer.evaluate(make_table(seed=1))["auc"] > 0.7


def test_auto_follows_the_processor() -> None:
    text = "processor\t: 0\nvendor_id\t: {}\nflags\t\t: fpu {}\n"
    assert has_fast_bf16(text.format("GenuineIntel", "avx512_bf16 amx_bf16"))
    assert has_fast_bf16(text.format("AuthenticAMD", "avx512_bf16"))
    assert not has_fast_bf16(text.format("GenuineIntel", "avx512_bf16"))
    assert not has_fast_bf16(text.format("AuthenticAMD", "avx2"))
    assert not has_fast_bf16("")
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")


def test_auto_is_recorded_as_what_it_became(schema: wd.Schema) -> None:
    trainer = make_trainer(schema, precision="auto")
    assert trainer.config.precision == resolve_precision("auto", torch.device("cpu"))


def test_an_unknown_precision_is_refused(schema: wd.Schema) -> None:
    with pytest.raises(ConfigError, match=r"got precision = 'fp16'.* or 'bf16' or 'auto'"):
        make_trainer(schema, precision="fp16")
