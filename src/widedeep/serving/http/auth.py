"""API keys and their rates."""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widedeep.errors import ConfigError, nearest
from widedeep.kernels import ApiKey, ApiKeys, TokenBucket
from widedeep.serving.config import Settings
from widedeep.serving.http.errors import HttpError
from widedeep.serving.versions import file_signature

_KEY_FIELDS = ("sha256", "rate", "admin")


class Keys:
    """The API keys of the server's callers."""

    def __init__(self, path: Path, workers: int) -> None:
        self._path, self._workers = path, workers
        self._signature = file_signature(path)
        self.native = ApiKeys()  # That native threads ask, too
        self.native.replace(_read_keys(path, workers))

    @property
    def has_admin(self) -> bool:
        """Whether any key is an admin key."""
        return any(key.admin for key in self.native.all())

    @classmethod
    def load(cls, path: str | Path, *, workers: int = 1) -> Keys:
        """Read a file of keys."""
        return cls(Path(path), workers)

    def reload(self, *, force: bool = False) -> bool:
        """Read the file again if it has changed; unchanged callers keep their token buckets."""
        signature = file_signature(self._path)
        if signature == self._signature and not force:
            return False
        self._signature = signature  # also of a file with a mistake: it is not read twice
        before = {key.name: key for key in self.native.all()}
        keys = _read_keys(self._path, self._workers)
        self.native.replace([_with_bucket_of(before.get(key.name), key) for key in keys])
        return True

    def check(self, offered: str | None, *, admin: bool = False) -> ApiKey:
        """Return the key that was offered, and count the request against its rate."""
        if offered is None:
            raise HttpError(
                401, "got no API key; send one as Authorization: Bearer KEY, or as X-API-Key: KEY"
            )
        caller = self.native.find(offered.encode("utf-8", "surrogateescape"))
        if caller is None:
            raise HttpError(401, "got an unknown API key; check the key")
        if admin != caller.admin:
            expected = "an admin key" if admin else "a caller's key, not an admin key"
            raise HttpError(403, f"got the key of {caller.name!r}, expected {expected}")
        wait = caller.bucket.take() if caller.bucket else 0.0
        if caller.bucket and wait:
            raise HttpError(
                429,
                f"got more than {caller.bucket.rate:g} requests a second with the key of "
                f"{caller.name!r}; slow down",
                retry_after=math.ceil(wait),
            )
        return caller


def _read_keys(path: Path, workers: int) -> list[ApiKey]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; name the file of API keys") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file of API keys") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; write it as TOML") from error
    tables = document.get("keys")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path}: got no table [keys.NAME]; write one for each caller")
    return [_read(path, name, table, workers) for name, table in tables.items()]


def _with_bucket_of(before: ApiKey | None, key: ApiKey) -> ApiKey:
    old = None if before is None else before.bucket
    same = old is not None and key.bucket is not None and old.rate == key.bucket.rate
    return ApiKey(key.name, digest=key.digest, admin=key.admin, bucket=old) if same else key


def _read(path: str | Path, name: str, table: Any, workers: int) -> ApiKey:
    table_name = f"{path}, [keys.{name}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{table_name}: got {table!r}, expected a table with the key sha256")
    for entry in table:
        if entry not in _KEY_FIELDS:
            raise ConfigError(f"{table_name}: got {entry!r}; {nearest(entry, _KEY_FIELDS)}")
    try:
        digest = bytes.fromhex(table["sha256"])
    except (KeyError, TypeError, ValueError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ConfigError(
            f'{table_name}: expected sha256 = "64 hexadecimal digits": printf %s "$KEY" | sha256sum'
        )
    rate, admin = table.get("rate"), table.get("admin", False)
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
        raise ConfigError(f"{table_name}: got rate={rate!r}, expected requests a second above 0")
    if not isinstance(admin, bool):
        raise ConfigError(f"{table_name}: got admin={admin!r}, expected true or false")
    bucket = None if rate is None else TokenBucket(rate / workers)
    return ApiKey(name, digest=digest, admin=admin, bucket=bucket)


def load_keys(settings: Settings) -> Keys | None:
    """Return the callers' keys; None if the server asks for none."""
    if settings.keys is None:
        return None
    keys = Keys.load(settings.keys, workers=settings.workers)
    if settings.admin and not keys.has_admin:
        raise ConfigError(f"{settings.keys}: got no key with admin = true; write one")
    return keys
