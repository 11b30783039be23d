"""The labels of two models side by side: heads and classes are matched by name, never by place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.errors import DataError, SchemaError

_SHOWN = 10
_SERVERS = "servers that follow one directory refuse it there: publish it in a directory of its own"


def class_names(bundle: Bundle, head: BundleHead) -> tuple[str, ...]:
    """Return a head's classes in its own order; of a numeric class label, its numbers as text."""
    names = bundle.schema.classes.get(head.name, ()) or head.classes
    if names or head.kind != "multiclass":
        return tuple(names)
    return tuple(str(number) for number in range(head.stop - head.start))


def check_comparable(candidate: Bundle, serving: Bundle) -> None:
    """Raise a :class:`SchemaError` unless both models predict the same labels."""
    mine, theirs = candidate.schema.spec.labels, serving.schema.spec.labels
    if dict(mine) != dict(theirs) or _kinds(candidate) != _kinds(serving):
        raise _differ(candidate, serving, f"{dict(mine)} ({_shown(candidate)})",
                      f"{dict(theirs)} ({_shown(serving)})")  # fmt: skip
    others = {head.name: head for head in serving.model.heads}
    for head in candidate.model.heads:
        other = others[head.name]
        pair = class_names(candidate, head), class_names(serving, other)
        named = (
            bool(candidate.schema.classes.get(head.name)),
            bool(serving.schema.classes.get(head.name)),
        )
        # A binary head's score is the probability of its second class: another order is another
        # score, to every reader of the answers too.
        alike = pair[0] == pair[1] if head.kind == "binary" else len({*pair[0]} & {*pair[1]}) >= 2
        if (not alike and head.kind != "regression") or named[0] != named[1]:
            texts = [_listed(names) if names else "numbers" for names in pair]
            column = mine[head.name]
            raise _differ(
                candidate, serving, f"label {column!r} as {texts[0]} (in this order)", texts[1]
            )


def _kinds(bundle: Bundle) -> dict[str, str]:
    return {head.name: head.kind for head in bundle.model.heads}


def _shown(bundle: Bundle) -> str:
    heads = []
    for head in bundle.model.heads:
        names = class_names(bundle, head)
        listed = f" of {_listed(names)}" if names else ""
        heads.append(f"{head.name or 'one head'}: {head.kind}{listed}")
    return "; ".join(heads)


def _differ(candidate: Bundle, serving: Bundle, mine: str, theirs: str) -> SchemaError:
    return SchemaError(
        f"{candidate.path}: predicts {mine}, the model in service ({serving.path}) {theirs}; they "
        "cannot be compared: train it on the same label and classes (label_vocabulary names "
        "them), or judge it without --against and publish it by force"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


class LabelMatch:
    """Keeps the rows whose labels both models know, and says what was left out."""

    def __init__(self, candidate: Bundle, serving: Bundle | None) -> None:
        self._labels = dict(candidate.schema.spec.labels)
        self._mine = {h.name: class_names(candidate, h) for h in candidate.model.heads}
        others = () if serving is None else serving.model.heads
        self._theirs = {h.name: class_names(serving, h) for h in others} if serving else {}
        self._index = {head.name: at for at, head in enumerate(candidate.model.heads)}
        self._heads = candidate.model.heads
        self._other_index = {head.name: at for at, head in enumerate(others)}
        self._unknown: dict[tuple[str, str], Counter[str]] = {}
        self._serves = serving is not None

    def known(self, table: pa.Table) -> pa.Table:
        """Return the rows whose labels both models know; the others are counted."""
        keep = np.ones(table.num_rows, np.bool_)
        for name, column in self._labels.items():
            if not self._mine.get(name):
                continue
            texts = _texts(table.column(column))
            for who, names in (("candidate", self._mine), ("serving", self._theirs)):
                if name in names:
                    known = np.asarray(pc.is_in(texts, value_set=pa.array(names[name])))
                    known |= np.asarray(pc.is_null(texts))  # refused where it is read, with its row
                    keep &= known
                    self._count(column, who, texts.filter(pa.array(~known)))
        return table if keep.all() else table.filter(pa.array(keep))

    def _count(self, column: str, who: str, texts: pa.Array) -> None:
        if len(texts):
            counts = self._unknown.setdefault((column, who), Counter())
            for entry in pc.value_counts(texts).to_pylist():
                counts[entry["values"]] += entry["counts"]

    def check(self, batch: Batch) -> None:
        """Raise a :class:`DataError` for a numeric label that its head cannot have."""
        assert batch.labels_BL is not None
        for head in self._heads:
            labels_B = batch.labels_BL[:, self._index[head.name]]
            good_B = np.isfinite(labels_B)
            expected = "a finite number"
            if head.kind == "binary":
                good_B &= (labels_B >= 0) & (labels_B <= 1)
                expected = "0 to 1 for a binary head"
            elif head.kind == "multiclass":
                good_B &= (labels_B >= 0) & (labels_B == np.rint(labels_B))
                expected = f"a class, 0 to {head.stop - head.start - 1}"
            if not good_B.all():
                got = labels_B[int(good_B.argmin())]
                column = self._labels[head.name]
                raise DataError(
                    f"label {column!r}: got {got:g}, expected {expected}; correct the label or "
                    "drop the row"
                )

    def common_columns(self, name: str) -> tuple[list[int], list[int]] | None:
        """Return where each model has the classes that both know; None if they know the same."""
        mine, theirs = self._mine.get(name, ()), self._theirs.get(name, ())
        if not self._serves or set(mine) == set(theirs):
            return None
        common = [c for c in mine if c in set(theirs)]
        return [mine.index(c) for c in common], [theirs.index(c) for c in common]

    def other_index(self, name: str) -> int:
        """Place of a head among those of the model in service."""
        return self._other_index[name]

    def findings(self) -> tuple[list[str], list[str]]:
        """Return what stops the candidate, and what a person should know, in plain words."""
        reasons, notes = [], []
        for (column, who), counts in self._unknown.items():
            shown = ", ".join(f"{k!r} ({n:,})" for k, n in counts.most_common(_SHOWN))
            rows = f"label {column!r}: {counts.total():,} rows hold {shown}"
            if who == "candidate":
                name = next(n for n, c in self._labels.items() if c == column)
                reasons.append(
                    f"{rows}, which the candidate does not know (its classes: "
                    f"{_listed(self._mine[name])}); train it on data with that label, or leave "
                    "those rows out"
                )
            else:
                notes.append(f"{rows}, which the model in service does not know; they are left out")
        for name, theirs in self._theirs.items():
            lost = [c for c in theirs if c not in self._mine[name]]
            if theirs != self._mine[name] and set(theirs) == set(self._mine[name]):
                notes.append(
                    f"label {self._labels[name]!r}: the candidate has the classes in another order "
                    f"({_listed(self._mine[name])}) than the model in service; they were matched "
                    f"by name; {_SERVERS}"
                )
            if lost:
                notes.append(
                    f"label {self._labels[name]!r}: the candidate does not know {_listed(lost)}, "
                    f"which the model in service predicts; {_SERVERS}"
                )
            new = [c for c in self._mine[name] if c not in theirs]
            if new and self._serves:
                notes.append(
                    f"label {self._labels[name]!r}: the candidate predicts {_listed(new)}, which "
                    f"the model in service does not know; {_SERVERS}"
                )
        return reasons, notes


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Labels as text; whole numbers as they are written, whatever their type."""
    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    if pa.types.is_floating(whole.type):
        numbers = whole.to_numpy(zero_copy_only=False)
        safe = np.isfinite(numbers) & (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**53)
        # What is no class at all is refused by :meth:`LabelMatch.check`, not called unknown.
        texts = [str(int(n)) if ok and n >= 0 else None
                 for n, ok in zip(numbers.tolist(), safe.tolist(), strict=True)]  # fmt: skip
        return pa.array(texts, pa.string())
    if pa.types.is_boolean(whole.type):
        whole = whole.cast(pa.int64())
    if pa.types.is_integer(whole.type):
        negative = pc.less(whole, 0)
        texts = whole.cast(pa.string())
        return pc.if_else(negative, pa.scalar(None, pa.string()), texts)
    return whole.cast(pa.string())
