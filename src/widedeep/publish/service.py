"""The bundle in service, wherever its directory of versions is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from widedeep.errors import BundleError
from widedeep.publish.storage import Place, open_place

__all__ = ["bundle_in_service"]


@contextlib.contextmanager
def bundle_in_service(models: Place | str | os.PathLike[str]) -> Iterator[Path | None]:
    """Give the bundle that takes the traffic; None where nothing was ever published.

    One behind a URL is fetched, and is gone again afterwards.

    Args:
        models: The directory of versions, or its URL.

    Raises:
        BundleError: If versions were published and none of them serves, or it cannot be fetched.

    Example:
        >>> with bundle_in_service("no such folder yet") as serving:
        ...     print(serving)
        None
    """
    place = open_place(models) if isinstance(models, str | os.PathLike) else models
    version = place.served()
    if version is None:
        known = sorted({*place.versions(), *place.records()})
        if known:
            raise BundleError(
                f"{place.name}: the model in service is gone: versions {', '.join(known)} were "
                "published, and none of them is there and in service; restore one, or publish "
                "another by force (--force --reason TEXT)"
            )
        yield None
        return
    with place.bundle(version) as path:
        yield path
