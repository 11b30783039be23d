"""One version made ready: checked, loaded, its catalogue built, its stored requests answered."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from widedeep.bundle import Bundle, BundleHead
from widedeep.errors import BundleError
from widedeep.features.sides import item_columns
from widedeep.serving.candidates import MAX_VALUES
from widedeep.serving.catalogue import Catalogue
from widedeep.serving.private_copies import PrivateCopies
from widedeep.serving.ranker import Ranker
from widedeep.serving.shared_rows import SharedRows

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerOptions:
    """How a version's :class:`~widedeep.serving.ranker.Ranker` is made."""

    # The catalogue's Parquet file; None: candidates are given inline
    items: str | os.PathLike[str] | None = None
    item_id: str | None = None  # The catalogue's column of item ids
    # Items that are not in the catalogue are scored as never seen, or refused
    unknown_items: Literal["score", "refuse"] = "score"
    # Of the catalogue's prebuilt rows and of the hidden layers' products
    precision: Literal["float32", "bfloat16"] = "float32"
    max_values: int = MAX_VALUES  # Most ids and numbers that a request may come to
    threads: int = 1  # Threads that a long request is split over
    # Where several processes keep one copy of the catalogue's rows
    shared_rows: SharedRows | None = None
    copies: PrivateCopies | None = None  # Where bundles are copied to before they are served


def load_ranker(
    path: Path,
    options: RankerOptions,
    catalogue: Catalogue | None = None,
    *,
    like: Ranker | None = None,
    files: Path | None = None,
) -> Ranker:
    """Load a version and have it answer the requests stored in its bundle."""
    bundle = _load_bundle(path, files)
    bundle.limit_values(options.max_values)
    if like is not None:
        _check_heads(bundle, like.bundle)
    ranker = Ranker(
        bundle,
        items=catalogue,
        item_id=options.item_id,
        unknown_items=options.unknown_items,
        precision=options.precision,
        threads=options.threads,
        shared_rows=options.shared_rows,
    )
    _answer_stored_requests(bundle, ranker)
    return ranker


def _load_bundle(path: Path, files: Path | None) -> Bundle:
    if files is None:
        return Bundle.load(path)
    try:
        bundle = Bundle.load(files, verify=False)
        bundle._check_warmup()
    except BundleError as error:  # operators know the bundle by where it was published
        raise BundleError(str(error).replace(str(files), str(path))) from error
    bundle.path = path
    return bundle


def _check_heads(bundle: Bundle, serving: Bundle) -> None:
    got, want = _told(bundle), _told(serving)
    if got != want:
        raise BundleError(
            f"{bundle.path}: got a model with the heads {got}, the version that serves has {want}: "
            "it is another model; publish it in a directory of its own"
        )


def _told(bundle: Bundle) -> str:
    def classes(head: BundleHead) -> str:
        names = "".join(f" {name}" for name in head.classes)
        if head.kind != "multiclass":  # its score is the probability of the second class
            return f" of{names}" if names else ""
        return f" of {head.stop - head.start} classes{names}"

    return ", ".join(
        f"{head.name or 'score'} ({head.kind}{classes(head)})" for head in bundle.model.heads
    )


def _answer_stored_requests(bundle: Bundle, ranker: Ranker) -> None:
    """Compare each stored row's score with the one it gets as a request of one candidate."""
    of_item = item_columns(bundle.schema.spec)
    heads = [head.name for head in bundle.model.heads if head.kind != "multiclass"]
    for index, row in enumerate(bundle.warmup.rows):
        # Where no feature is declared to be the item's, those that come with an item are.
        item = {name: [value] for name, value in row.items() if name in of_item or not of_item}
        user = {name: value for name, value in row.items() if name not in item}
        for head in heads if item else []:
            got = float(ranker.rank(user, candidates=item, head=head).scores[0])
            want = float(bundle.warmup.scores[head][index])
            if not abs(got - want) <= _TOLERANCE[ranker.precision] * max(1.0, abs(want)):
                half = ranker.precision == "bfloat16"
                cure = "serve it in float32, or export it" if half else "export it"
                raise BundleError(
                    f"{bundle.path}: stored request {index} is ranked with {got}, it scored {want} "
                    f"when the bundle was written; {cure} with this version"
                )


def lower_thread_priority(niceness: int = 19) -> None:
    """Let this thread run where others leave the processor idle (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
