"""What every kernel asks of its arrays, checked before a pointer is taken from them."""

from __future__ import annotations

from typing import Any, NoReturn
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "IdOutOfRangeError",
    "Passed",
    "check_batch",
    "check_matrix",
    "check_same_shape",
    "check_slots",
    "check_tables",
    "check_vector",
    "raise_fault",
]


class IdOutOfRangeError(ValueError):
    """An id lies outside its table.

    Args:
        slot: Feature slot that holds the id.
        example: Example of the batch that holds it.
        id: The id.
        size: Rows of the slot's table: 0 <= id < size is allowed.
    """

    def __init__(self, slot: int, example: int, id: int, size: int) -> None:
        super().__init__(
            f"ids_N: slot {slot} of example {example} holds id {id}, outside [0, {size}); "
            "encode the batch with the schema that the tables were made for"
        )
        self.slot = slot
        self.example = example
        self.id = id
        self.size = size


def check_vector(
    name: str, array: NDArray[Any], dtype: DTypeLike, length: int | None = None
) -> None:
    """Raise ValueError unless ``array`` is one contiguous dimension of ``dtype``.

    Args:
        name: What the message calls the array.
        array: The array.
        dtype: The dtype it must have.
        length: The length it must have, or None for any.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{name}: got {_seen(array)}, expected a vector of {np.dtype(dtype)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: not contiguous; pass np.ascontiguousarray({name})")
    if length is not None and len(array) != length:
        raise ValueError(f"{name}: got length {len(array)}, expected {length}")


def check_matrix(
    name: str, array: NDArray[Any], *, rows: int | None = None, width: int | None = None
) -> None:
    """Raise ValueError unless ``array`` is a float32 matrix with contiguous rows.

    Args:
        name: What the message calls the array.
        array: The array; its rows may lie further apart than their width.
        rows: The number of rows it must have, or None for any.
        width: The number of columns it must have, or None for any.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
        raise ValueError(f"{name}: got {_seen(array)}, expected a matrix of float32")
    if array.size and array.shape[1] > 1 and array.strides[1] != 4:
        raise ValueError(f"{name}: rows are not contiguous; pass np.ascontiguousarray({name})")
    if array.strides[0] % 4 or array.strides[0] < 0:
        raise ValueError(
            f"{name}: rows lie {array.strides[0]} bytes apart, expected whole floats, ascending"
        )
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name}: got {len(array)} rows, expected {rows}")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name}: got width {array.shape[1]}, expected {width}")


def check_same_shape(name: str, array: NDArray[Any], other_name: str, other: NDArray[Any]) -> None:
    """Raise ValueError unless both matrices have the same rows and width."""
    if array.shape != other.shape:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected that of {other_name}, {other.shape}"
        )


def check_batch(
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    values_N: NDArray[np.float32] | None,
    n_features: int,
) -> int:
    """Check the arrays of a batch and return its number of examples.

    The offsets' values are checked by the kernels, where they are read.
    """
    check_vector("ids_N", ids_N, np.int64)
    check_vector("offsets_BF", offsets_BF, np.int64)
    if n_features < 1 or len(offsets_BF) < 1 or (len(offsets_BF) - 1) % n_features:
        raise ValueError(
            f"offsets_BF: got length {len(offsets_BF)} for {n_features} features, "
            "expected examples * features + 1"
        )
    if len(ids_N) >= 2**31 or len(offsets_BF) >= 2**31:
        raise ValueError(
            f"ids_N: got {len(ids_N)} ids in {len(offsets_BF) - 1} cells, expected fewer than "
            "2**31 of each; use smaller batches"
        )
    if values_N is not None:
        check_vector("values_N", values_N, np.float32, len(ids_N))
    return (len(offsets_BF) - 1) // n_features


# Read-only arrays that passed, by what they were checked for: every step comes with the same ones.
_passed: WeakValueDictionary[tuple[object, ...], NDArray[Any]] = WeakValueDictionary()


class Passed:
    """Remembers that read-only arrays passed a check, for as long as they live.

    Args:
        check: The check's name.
        arrays: What it looks at.
        numbers: What it compares them with.
    """

    def __init__(self, check: str, arrays: tuple[NDArray[Any], ...], *numbers: int | None) -> None:
        self._arrays = arrays
        self._key = (check, *numbers, *map(id, arrays))

    def before(self) -> bool:
        """Whether these very arrays passed it before."""
        return all(_passed.get((self._key, i)) is a for i, a in enumerate(self._arrays))

    def now(self) -> None:
        """Say that they passed; arrays that may still change are not remembered."""
        if not any(array.flags.writeable for array in self._arrays):
            for i, array in enumerate(self._arrays):
                _passed[(self._key, i)] = array


def check_slots(slots: NDArray[np.int32], n_features: int) -> None:
    """Raise ValueError unless the slots ascend within [0, n_features)."""
    passed = Passed("slots", (slots,), n_features)
    if passed.before():
        return
    check_vector("slots", slots, np.int32)
    if not len(slots):
        return
    if slots[0] < 0 or slots[-1] >= n_features or bool((slots[1:] <= slots[:-1]).any()):
        raise ValueError(
            f"slots: got {slots.tolist()}, expected ascending numbers in [0, {n_features})"
        )
    passed.now()


def check_tables(
    bases: NDArray[np.int64], sizes: NDArray[np.int64], n: int, n_rows: int | None
) -> None:
    """Raise ValueError unless every [base, base + size) lies within the physical rows.

    Args:
        bases: First physical row of each table.
        sizes: Rows of each table.
        n: Tables that there must be.
        n_rows: Physical rows, or None where no row is touched.
    """
    passed = Passed("tables", (bases, sizes), n, n_rows)
    if passed.before():
        return
    check_vector("bases", bases, np.int64, n)
    check_vector("sizes", sizes, np.int64, n)
    if n and (int(bases.min()) < 0 or int(sizes.min()) < 0):
        raise ValueError(f"bases: got {bases.tolist()}, sizes {sizes.tolist()}, expected >= 0")
    if n and n_rows is not None and int((bases + sizes).max()) > n_rows:
        raise ValueError(
            f"bases: table at {int((bases + sizes).argmax())} ends at row "
            f"{int((bases + sizes).max())}, but there are {n_rows} rows"
        )
    passed.now()


def raise_fault(
    ids_N: NDArray[np.int64],
    offsets_BF: NDArray[np.int64],
    n_features: int,
    slots: NDArray[np.int32],
    sizes: NDArray[np.int64],
) -> NoReturn:
    """Say what a kernel stumbled over: offsets that go back, or an id outside its table.

    Args:
        ids_N: The batch's ids.
        offsets_BF: The batch's offsets.
        n_features: Feature slots F.
        slots: The slots that took part.
        sizes: Rows of the table of each of them.
    """
    lengths = np.diff(offsets_BF)
    bad = (lengths < 0) | (offsets_BF[:-1] < 0) | (offsets_BF[1:] > len(ids_N))
    if bad.any():
        cell = int(bad.argmax())
        raise ValueError(
            f"offsets_BF: slot {cell % n_features} of example {cell // n_features} spans "
            f"{int(offsets_BF[cell])} to {int(offsets_BF[cell + 1])}, expected an ascending span "
            f"within [0, {len(ids_N)}]"
        )
    limits = np.full(n_features, np.iinfo(np.int64).max)
    limits[slots] = sizes
    cells = np.repeat(np.arange(len(lengths)), lengths)
    ids = ids_N[int(offsets_BF[0]) : int(offsets_BF[-1])]
    outside = ((ids < 0) & np.isin(cells % n_features, slots)) | (ids >= limits[cells % n_features])
    cell = int(cells[outside.argmax()])
    slot = cell % n_features
    raise IdOutOfRangeError(slot, cell // n_features, int(ids[outside.argmax()]), int(limits[slot]))


def _seen(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return type(array).__name__
