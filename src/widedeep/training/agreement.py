"""Before a bundle takes its place: does it score as its trainer predicts?"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.calibration import Calibration
from widedeep.bundle.forward import Forward
from widedeep.bundle.scoring import head_scores
from widedeep.data.batch import Batch
from widedeep.errors import BundleError
from widedeep.kernels import reference_score
from widedeep.training.warmup import made_up_rows

if TYPE_CHECKING:
    from widedeep.trainer import Trainer

_PROMISE = 1e-6  # of max(1, |score|)
_OF_ONNX = 1e-4  # whose products are summed in an order of their own
_ROUNDING = 16.0  # times the bundle's own against float64: what float32 may explain
Floats = NDArray[Any]
ByHead = Mapping[str, Floats]


def check_agreement(
    trainer: Trainer,
    bundle: Bundle,
    calibration: Mapping[str, Calibration],
    rows: Sequence[Mapping[str, Any]],
    place: Path,
) -> None:
    """Score rows by a bundle that was just read from disk and by its trainer, and compare."""
    for what, data in _rows(trainer, rows):
        logits_BC = _trainer_logits(trainer, data)
        scores = _check_heads(trainer, bundle, logits_BC, calibration, place)
        batches = list(bundle.batches(data))
        _check_logits(bundle, batches, logits_BC, scores, f"{place}: of {what}")


def _rows(trainer: Trainer, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    columns = trainer.transform.columns(targets=False)
    if trainer.warmup.sample is not None:
        yield "a sample of the training data", trainer.warmup.sample
    if rows:
        filled = [{name: row.get(name) for name in columns} for row in rows]
        yield "the warm-up rows", filled
    made_up = made_up_rows(trainer.transform)
    if made_up:
        yield "the rows made up from the schema", made_up
    elif trainer.warmup.sample is None and not rows:
        raise BundleError(
            "got no rows to compare the bundle with its trainer on; give warmup=[...] a few"
        )


def _trainer_logits(trainer: Trainer, data: object) -> NDArray[np.float32]:
    """Return the trainer's logits, in full float32 on any device."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return trainer.logits(data, by_modules=True)
    finally:
        torch.set_float32_matmul_precision(before)


def _check_heads(
    trainer: Trainer,
    bundle: Bundle,
    logits_BC: NDArray[np.float32],
    calibration: Mapping[str, Calibration],
    place: Path,
) -> ByHead:
    """Hold each head's predictions against the bundle's scores of the same logits."""
    expected: dict[str, Floats] = {}
    for own, columns, head in zip(
        trainer.model.heads, trainer.model.head_slices, bundle.model.heads, strict=True
    ):
        logits = np.ascontiguousarray(logits_BC[:, columns], dtype=np.float64)
        predicted = own.predictions(torch.from_numpy(logits)).numpy()
        scores = head_scores(head, logits, None)
        name = f"head {head.name!r} ({type(own).__name__})".replace("head ''", "the head")
        if predicted.shape != scores.shape or (row := _first(predicted, scores, _PROMISE)) >= 0:
            got = "another shape" if predicted.shape != scores.shape else f"{predicted[row]}"
            raise BundleError(
                f"{place}: not written: {name} predicts {got} where the bundle would score "
                f"{scores[0] if predicted.shape != scores.shape else scores[row]} (row 0 of these "
                f"logits: {logits[0].tolist()}), for a bundle knows its link "
                f"{head.link!r} alone; give the head the link that its predictions() are "
                "('identity', 'exp' or 'sigmoid' of a regression's logit), or serve the model "
                "from its checkpoint"
            )
        expected[head.name] = scores
        if head.name in calibration:
            expected[head.name] = calibration[head.name].probabilities(logits[:, 0])
            read = head_scores(head, logits, bundle.calibration.get(head.name))
            if (row := _first(expected[head.name], read, 0.0)) >= 0:
                raise BundleError(
                    f"{place}: not written: {name} is calibrated to "
                    f"{expected[head.name][row]}, as read from disk to {read[row]} (row {row})"
                )
    return expected


def _check_logits(
    bundle: Bundle,
    batches: Sequence[Batch],
    logits_BC: NDArray[np.float32],
    scores: ByHead,
    what: str,
) -> None:
    found_BC = np.concatenate([bundle.logits(batch) for batch in batches])
    limit = _OF_ONNX
    rounding = 0.0
    if bundle.manifest.engine == "native":
        limit = _PROMISE
        scorer = functools.partial(reference_score.Scorer, dtype=np.float64)
        exact = Forward(bundle.schema, bundle.model, bundle.weights, new_scorer=scorer)
        exact_BC = np.concatenate([exact.logits(batch) for batch in batches])
        rounding = _ROUNDING * float(np.abs(found_BC - exact_BC).max(initial=0.0))
    row = _first(logits_BC, found_BC, limit, rounding)
    if row < 0:
        return
    heads = bundle.scores_of(found_BC)
    by_head = heads if isinstance(heads, dict) else {bundle.model.heads[0].name: heads}
    apart = np.abs(logits_BC - found_BC).max(axis=1) > limit
    told = "; ".join(
        f"{name + ': ' if name else ''}the trainer predicts {scores[name][row]}, the bundle scores "
        f"{column[row]}"
        for name, column in by_head.items()
    )
    raise BundleError(
        f"{what}, row {row} and {int(apart.sum()) - 1} more of {len(apart)} score otherwise than "
        f"the trainer predicts: {told} (logits {logits_BC[row].tolist()} and "
        f"{found_BC[row].tolist()}); the bundle was not written. A part of the model that a bundle "
        "does not carry, such as a tower that draws numbers or was changed by hand, makes such a "
        "difference"
    )


def _first(expected: Floats, found: Floats, limit: float, rounding: float = 0.0) -> int:
    """Return the row that differs most beyond the limit, or -1; what is not finite differs."""
    allowed = np.maximum(limit * np.maximum(1.0, np.abs(expected)), rounding)
    with np.errstate(invalid="ignore"):
        excess = np.abs(np.float64(expected) - found) - allowed
    excess = np.nan_to_num(excess, nan=np.inf).reshape(len(excess), -1).max(axis=1)
    row = int(excess.argmax())
    return row if excess[row] > 0 else -1
