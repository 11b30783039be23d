"""API keys and their rates."""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widedeep.errors import ConfigError, nearest
from widedeep.serving.config import Settings
from widedeep.serving.http.errors import HttpError


class TokenBucket:
    """A token bucket: ``rate`` requests per second, with bursts of one second's worth."""

    def __init__(self, rate: float, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._now = now
        self._capacity = max(1.0, rate)
        self._tokens = self._capacity
        self._updated_at = now()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token; return 0, or the seconds until the next one."""
        with self._lock:
            now = self._now()
            self._tokens = min(self._capacity, self._tokens + (now - self._updated_at) * self.rate)
            self._updated_at = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self.rate


_KEY_FIELDS = ("sha256", "rate", "admin")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """The key of one caller."""

    name: str  # Name of the caller for logs
    digest: bytes  # SHA-256 of the key; the key itself is stored nowhere
    admin: bool = False  # Whether it opens the admin endpoints, and only these
    bucket: TokenBucket | None = None  # Rate limit; None: no limit


class Keys:
    """The API keys of the server's callers."""

    def __init__(self, path: Path, workers: int) -> None:
        self._path, self._workers = path, workers
        self._signature = _file_signature(path)
        self._keys = _read_keys(path, workers)

    @property
    def has_admin(self) -> bool:
        """Whether any key is an admin key."""
        return any(key.admin for key in self._keys)

    @classmethod
    def load(cls, path: str | Path, *, workers: int = 1) -> Keys:
        """Read a file of keys."""
        return cls(Path(path), workers)

    def reload(self, *, force: bool = False) -> bool:
        """Read the file again if it has changed; unchanged callers keep their token buckets."""
        signature = _file_signature(self._path)
        if signature == self._signature and not force:
            return False
        self._signature = signature  # also of a file with a mistake: it is not read twice
        before = {key.name: key for key in self._keys}
        keys = _read_keys(self._path, self._workers)
        self._keys = [_with_bucket_of(before.get(key.name), key) for key in keys]
        return True

    def check(self, offered: str | None, *, admin: bool = False) -> ApiKey:
        """Return the key that was offered, and count the request against its rate."""
        if offered is None:
            raise HttpError(
                401, "got no API key; send one as Authorization: Bearer KEY, or as X-API-Key: KEY"
            )
        digest = hashlib.sha256(offered.encode("utf-8", "surrogateescape")).digest()
        caller = None
        for key in self._keys:  # compare all of them: the time must not reveal a match
            if hmac.compare_digest(digest, key.digest):
                caller = key
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


def _file_signature(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


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
    return replace(key, bucket=old) if same else key


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
    return ApiKey(name=name, digest=digest, admin=admin, bucket=bucket)


def load_keys(settings: Settings) -> Keys | None:
    """Return the callers' keys; None if the server asks for none."""
    if settings.keys is None:
        return None
    keys = Keys.load(settings.keys, workers=settings.workers)
    if settings.admin and not keys.has_admin:
        raise ConfigError(f"{settings.keys}: got no key with admin = true; write one")
    return keys
