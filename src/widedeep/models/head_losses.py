"""The loss of a model: the sum over its heads, of the rows that have a label for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widedeep.data.batch import Batch
from widedeep.errors import DataError, RowError
from widedeep.models import losses
from widedeep.models.head_base import Head
from widedeep.schema import Schema

BatchTensor = Callable[[str], Tensor]
"""Returns one of a batch's arrays, by name, where the model is."""


class HeadLosses:
    """Each example's loss, and the gradient of the weighted sum by the logits.

    A row without a label for a head (null) adds nothing to that head's loss; a head with weights
    of its own has each row's loss times that.
    """

    def __init__(self, heads: Sequence[Head], slices: Sequence[slice], schema: Schema) -> None:
        self.heads, self.slices = tuple(heads), tuple(slices)
        names = [head.name for head in heads]
        layout = schema.label_layout
        self._labels = [layout.get(name, slice(0, 1)) for name in names]
        self._weights = [schema.weight_columns.get(name) for name in names]
        self._columns = [schema.spec.labels.get(name, "label") for name in names]
        self._through = {
            index: names.index(through)
            for index, head in enumerate(heads)
            if (through := getattr(head, "through", None)) is not None
        }
        self._plain = len(heads) == 1 and not (
            heads[0].loss_weight != 1.0
            or heads[0].reads_requests
            or heads[0].kind == "multilabel"
            or self._weights[0] is not None
        )

    @property
    def is_log_loss(self) -> bool:
        """True for the log loss of one head, as the native kernel computes it."""
        return self._plain and self.heads[0].is_log_loss

    def labels(self, batch: Batch, index: int) -> NDArray[np.float32]:
        """Return a head's labels, (B,), or (B, classes) of a multi-label head; NaN: none."""
        assert batch.labels_BL is not None
        columns = batch.labels_BL[:, self._labels[index]]
        return columns if self.heads[index].kind == "multilabel" else columns[:, 0]

    def weights(self, batch: Batch, index: int) -> NDArray[np.float32] | None:
        """Return the weight of each row for a head: the examples' times the head's own."""
        column = self._weights[index]
        if column is None:
            return batch.weight_B
        assert batch.labels_BL is not None
        own_B = batch.labels_BL[:, column]
        return own_B if batch.weight_B is None else own_B * batch.weight_B

    def predictions(self, index: int, logits_BC: Tensor) -> Tensor:
        """Return a head's predictions from the logits of all heads."""
        own = self.heads[index].predictions(logits_BC[:, self.slices[index]])
        if index in self._through:
            own = own * self.predictions(self._through[index], logits_BC)
        return own

    def of_head(
        self, index: int, logits_BC: NDArray[np.float32], batch: Batch
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a head's losses of the rows with a label, in float64, and their weights."""
        rows_O = self._observed(batch, index)
        labels, weight = self.labels(batch, index), self.weights(batch, index)
        weight = np.ones(len(batch), np.float32) if weight is None else weight
        logits = logits_BC
        if rows_O is not None:
            labels, weight, logits = labels[rows_O], weight[rows_O], logits[rows_O]
        weight_O = weight.astype(np.float64)
        logits_OC = torch.from_numpy(logits).double()
        labels_O = torch.from_numpy(np.ascontiguousarray(labels)).double()
        if self.heads[index].reads_requests:
            head, requests = self.heads[index], self._requests(self.heads[index], batch, rows_O)
            own = logits_OC[:, self.slices[index]]
            ones = torch.ones_like(labels_O)
            losses_O = head.request_losses_and_gradient(own, labels_O, ones, requests)[0]
        else:
            losses_O = self._of_rows(index, logits_OC, labels_O)[0]
        return losses_O.numpy(), weight_O

    def __call__(
        self, logits_BC: Tensor, batch: Batch, tensor_of: BatchTensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses (B,), before the examples' weights, and the gradient (B, C)."""
        if batch.labels_BL is None:
            raise DataError("got a batch without labels; give the spec a label column")
        rows = [self._observed(batch, index) for index in range(len(self.heads))]
        labels_BL = tensor_of("labels_BL")
        if self._plain and rows[0] is None and batch.weight_B is None:
            labels_B = labels_BL[:, 0].contiguous()
            return self.heads[0].losses_and_gradient(logits_BC, labels_B)
        losses_B = torch.zeros(len(batch), device=logits_BC.device)
        grad_BC = torch.zeros_like(logits_BC)
        weight_B = None if batch.weight_B is None else tensor_of("weight_B")
        for index, rows_O in enumerate(rows):
            self._add(index, rows_O, batch, labels_BL, weight_B, logits_BC, losses_B, grad_BC)
        return losses_B, grad_BC

    def of_rows(
        self, batch: Batch, tensor_of: BatchTensor
    ) -> Callable[[Tensor, int, int], tuple[Tensor, Tensor]]:
        """Return what :meth:`__call__` does of rows ``first`` to ``last``, given their logits.

        What can be checked of all rows at once is checked here.
        """
        if self._plain and batch.weight_B is None:
            with contextlib.suppress(RowError):  # raised again where that row is learned
                self._observed(batch, 0)
                head, labels_B = self.heads[0], tensor_of("labels_BL")[:, 0].contiguous()
                return lambda logits_BC, first, last: head.losses_and_gradient(
                    logits_BC, labels_B[first:last]
                )

        def learn(logits_BC: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
            rows = batch.slice(first, last)
            return self(logits_BC, rows, lambda name: torch.from_numpy(getattr(rows, name)))

        return learn

    def _observed(self, batch: Batch, index: int) -> NDArray[np.int64] | None:
        """Check a head's labels; return the rows that have one, or None for all rows."""
        head, labels = self.heads[index], np.ascontiguousarray(self.labels(batch, index))
        rows_O = None
        if len(self.heads) > 1 or self._weights[index] is not None:
            missing_B = np.isnan(labels[:, 0] if labels.ndim == 2 else labels)
            if missing_B.any() and len(self.heads) > 1:
                rows_O = np.flatnonzero(~missing_B)
                labels = labels[rows_O]
        try:
            # On the host: reading the device's copy would wait for it.
            head.check_labels(torch.from_numpy(labels), self._columns[index])
        except RowError as error:
            row = error.row if rows_O is None else int(rows_O[error.row])
            raise RowError(error.subject, row, error.problem) from None
        if self._weights[index] is not None:
            self._check_weights(batch, index, missing_B)
        return rows_O

    def _check_weights(self, batch: Batch, index: int, missing_B: NDArray[np.bool_]) -> None:
        assert batch.labels_BL is not None
        wrong_B = np.isnan(batch.labels_BL[:, self._weights[index]]) & ~missing_B
        if wrong_B.any():
            raise RowError(
                f"weight of head {self.heads[index].name!r}",
                int(wrong_B.argmax()),
                "got null where there is a label, expected a number of at least 0",
            )

    def _add(
        self,
        index: int,
        rows_O: NDArray[np.int64] | None,
        batch: Batch,
        labels_BL: Tensor,
        weight_B: Tensor | None,
        logits_BC: Tensor,
        losses_B: Tensor,
        grad_BC: Tensor,
    ) -> None:
        """Add a head's losses of its rows, and its gradient."""
        head, rows = self.heads[index], None
        if rows_O is not None:
            if not len(rows_O):
                return
            rows = torch.from_numpy(rows_O).to(logits_BC.device)
            logits_BC, labels_BL = logits_BC[rows], labels_BL[rows]
            weight_B = None if weight_B is None else weight_B[rows]
        labels = labels_BL[:, self._labels[index]].contiguous()
        labels = labels if head.kind == "multilabel" else labels[:, 0].contiguous()
        factor: float | Tensor = head.loss_weight
        if (own_weight := self._weights[index]) is not None:
            factor = factor * labels_BL[:, own_weight]
        if head.reads_requests:
            requests = self._requests(head, batch, rows_O).to(logits_BC.device)
            scale_B = torch.ones_like(labels) * factor
            scale_B = scale_B if weight_B is None else scale_B * weight_B
            columns = self.slices[index]
            head_losses, head_grad = head.request_losses_and_gradient(
                logits_BC[:, columns], labels, scale_B, requests
            )
        else:
            head_losses, head_grad, columns = self._of_rows(index, logits_BC, labels)
            head_grad = (factor[:, None] if isinstance(factor, Tensor) else factor) * head_grad
            head_grad = head_grad if weight_B is None else head_grad * weight_B[:, None]
        head_losses = factor * head_losses
        if rows is None:
            losses_B += head_losses
            grad_BC[:, columns] += head_grad
        else:
            losses_B.index_add_(0, rows, head_losses)
            spread = torch.zeros_like(grad_BC[:, columns])
            grad_BC[:, columns] += spread.index_copy_(0, rows, head_grad)

    def _of_rows(
        self, index: int, logits_BC: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, slice]:
        """Return a head's losses, its gradient, and the columns that this is of."""
        head, columns = self.heads[index], self.slices[index]
        if index not in self._through:
            return *head.losses_and_gradient(logits_BC[:, columns], labels), columns
        own, other = columns.start, self.slices[self._through[index]].start
        grad_BC = torch.zeros_like(logits_BC)
        losses_B, grad_BC[:, own], grad_BC[:, other] = losses.product_of_probabilities(
            logits_BC[:, own], logits_BC[:, other], labels
        )
        return losses_B, grad_BC, slice(0, logits_BC.shape[1])

    @staticmethod
    def _requests(head: Head, batch: Batch, rows_O: NDArray[np.int64] | None) -> Tensor:
        """Return the request of each row with a label, from 0."""
        if batch.group_B is None:
            raise DataError(
                f"head {head.name!r}: got a batch without requests, expected group=... in the spec"
            )
        group = batch.group_B if rows_O is None else batch.group_B[rows_O]
        _, codes = np.unique(group, return_inverse=True)
        return torch.from_numpy(codes.astype(np.int64))
