"""What is said of ids outside their tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from widedeep import kernels
from widedeep.errors import DataError
from widedeep.tables.storage import SlotLike


@contextmanager
def named_features(slots: Sequence[SlotLike]) -> Iterator[None]:
    """Say which feature an id outside its table belongs to."""
    try:
        yield
    except kernels.IdOutOfRangeError as error:
        where = f"example {error.example} of the batch"
        message = outside(slots[error.slot].name, error.id, error.size, where)
        raise DataError(message) from None


def outside(feature: str, id: int, size: int, where: str = "") -> str:
    """Return what an id outside its table is told as."""
    location = f" ({where})" if where else ""
    advice = "encode the rows with the schema that the model was made with"
    return f"feature {feature!r}{location}: got id {id}, expected 0 <= id < {size}; {advice}"
