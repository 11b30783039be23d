"""Attention over pairs of fields in plain NumPy, in float64."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def _forward(
    fields_BX: Floats, weight_AD: Floats, bias_A: Floats, score_A: Floats
) -> tuple[Any, Any, Any, Any, Any]:
    """Return the fields, the products, the units' sums, the attention and the pooled products."""
    fields_BFD = np.float64(fields_BX).reshape(
        len(fields_BX), fields_BX.shape[1] // weight_AD.shape[1], weight_AD.shape[1]
    )
    i_P, j_P = np.array(list(combinations(range(fields_BFD.shape[1]), 2))).T
    products_BPD = fields_BFD[:, i_P] * fields_BFD[:, j_P]
    sums_BPA = products_BPD @ np.float64(weight_AD).T + bias_A
    scores_BP = np.maximum(sums_BPA, 0) @ np.float64(score_A)
    powers_BP = np.exp(scores_BP - scores_BP.max(axis=1, keepdims=True))
    attention_BP = powers_BP / powers_BP.sum(axis=1, keepdims=True)
    pooled_BD = np.einsum("bp,bpd->bd", attention_BP, products_BPD)
    return fields_BFD, products_BPD, sums_BPA, attention_BP, pooled_BD


def attend_pairs(
    fields_BX: Floats,
    weight_AD: Floats,
    bias_A: Floats,
    score_A: Floats,
    out_BD: Floats,
    attention_BP: Floats,
    threads: int,
) -> None:
    """Fill the pooled products and the weights of the pairs."""
    *_, attention_BP[:], out_BD[:] = _forward(fields_BX, weight_AD, bias_A, score_A)


def attend_pairs_grad(
    fields_BX: Floats,
    weight_AD: Floats,
    bias_A: Floats,
    score_A: Floats,
    attention_BP: Floats,
    grad_out_BD: Floats,
    grad_fields_BX: Floats,
    grad_weight_AD: Floats,
    grad_bias_A: Floats,
    grad_score_A: Floats,
    threads: int,
) -> None:
    """Fill the gradients."""
    fields_BFD, products_BPD, sums_BPA, weights_BP, pooled_BD = _forward(
        fields_BX, weight_AD, bias_A, score_A
    )
    grad_BD = np.float64(grad_out_BD)
    # The softmax: a (g . p - g . pooled)
    by_score_BP = weights_BP * (
        np.einsum("bd,bpd->bp", grad_BD, products_BPD) - (grad_BD * pooled_BD).sum(1)[:, None]
    )
    by_sum_BPA = by_score_BP[:, :, None] * np.float64(score_A) * (sums_BPA > 0)
    grad_score_A[:] = np.einsum("bp,bpa->a", by_score_BP, np.maximum(sums_BPA, 0))
    grad_bias_A[:] = by_sum_BPA.sum((0, 1))
    grad_weight_AD[:] = np.einsum("bpa,bpd->ad", by_sum_BPA, products_BPD)
    by_product_BPD = weights_BP[:, :, None] * grad_BD[:, None] + by_sum_BPA @ weight_AD
    grad_BFD = np.zeros_like(fields_BFD)
    for pair, (i, j) in enumerate(combinations(range(fields_BFD.shape[1]), 2)):
        grad_BFD[:, i] += by_product_BPD[:, pair] * fields_BFD[:, j]
        grad_BFD[:, j] += by_product_BPD[:, pair] * fields_BFD[:, i]
    grad_fields_BX[:] = grad_BFD.reshape(fields_BX.shape)
