"""What an operator may ask of a server: load, unload, roll back, labels, canary, shadow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar

import msgspec

from widedeep.errors import ConfigError, WideDeepError
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Call, Reply, Service, decode, json_reply
from widedeep.serving.http.settings import Settings
from widedeep.serving.registry import NoVersion, Registry

Result = TypeVar("Result")
_LOAD_S = 60.0
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::\d+)?")


class VersionOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Names a version; None where the verb allows it."""

    version: str | None = None


class LabelOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Gives a version a label; version None takes the label away."""

    label: str
    version: str | None = None


class CanaryOrder(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Gives a version a share of the requests, 0 to 1; version None ends it."""

    version: str | None = None
    share: float = 0.0


_version = msgspec.json.Decoder(VersionOrder)
_label = msgspec.json.Decoder(LabelOrder)
_canary = msgspec.json.Decoder(CanaryOrder)


def check_operator(call: Call, settings: Settings) -> None:
    """Refuse an order that a page of another site had a browser send."""
    host = call.header(b"host") or ""
    name = _HOST.fullmatch(host)
    bound = (call.scope.get("server") or ("",))[0]
    allowed_hosts = {"localhost", settings.host, bound, *settings.admin_hosts}
    if name is None or not (name[1].lower().strip("[]") in allowed_hosts or _is_loopback(name[1])):
        raise HttpError(
            403,
            f"got the host {host!r}; call an admin path by the server's own address, or start it "
            "with --admin-host NAME",
        )
    origin = call.header(b"origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise HttpError(403, f"got the origin {origin!r}; orders come from this server's own pages")
    site = call.header(b"sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise HttpError(403, f"got Sec-Fetch-Site {site!r}; orders come from no other site's page")
    media_type = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        raise HttpError(415, f"got Content-Type {media_type!r}, expected application/json")


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _ordered(order: Callable[[], Result]) -> Result:
    """Do what an operator asks, off the event loop: it reads and writes files, and may wait."""
    try:
        return await asyncio.to_thread(order)
    except NoVersion as error:
        raise HttpError(404, str(error)) from error
    except ConfigError as error:
        raise HttpError(400, str(error)) from error
    except WideDeepError as error:
        raise HttpError(409, str(error)) from error


def _registry(service: Service, call: Call) -> Registry:
    return service.models.registry(call.params["model"])


async def _order_body(call: Call, decoder: msgspec.json.Decoder[Any]) -> Any:
    call.check_media_type(b"application/json")
    return decode(await call.body() or b"{}", decoder)


def _needed(version: str | None) -> str:
    if version is None:
        raise HttpError(400, "got no version; name one", pointer="/version")
    return version


async def load(service: Service, call: Call) -> Reply:
    """Load a version, and keep it loaded."""
    registry = _registry(service, call)
    version = _needed((await _order_body(call, _version)).version)
    await _ordered(lambda: registry.load(version, wait_s=_LOAD_S))
    return json_reply({"loaded": version})


async def unload(service: Service, call: Call) -> Reply:
    """Serve a version no longer."""
    registry = _registry(service, call)
    version = _needed((await _order_body(call, _version)).version)
    await _ordered(lambda: registry.unload(version))
    return json_reply({"unloaded": version})


async def rollback(service: Service, call: Call) -> Reply:
    """Go back to an older version: the one named, or the one before."""
    registry = _registry(service, call)
    version = (await _order_body(call, _version)).version
    serving = await _ordered(lambda: registry.rollback(version, wait_s=_LOAD_S))
    return json_reply({"serving": serving})


async def label(service: Service, call: Call) -> Reply:
    """Give a version a label."""
    registry = _registry(service, call)
    order: LabelOrder = await _order_body(call, _label)
    await _ordered(lambda: registry.set_label(order.label, order.version))
    return json_reply({"label": order.label, "version": order.version})


async def canary(service: Service, call: Call) -> Reply:
    """Have a version answer a share of the requests."""
    registry = _registry(service, call)
    order: CanaryOrder = await _order_body(call, _canary)
    await _ordered(lambda: registry.set_canary(order.version, order.share))
    return json_reply({"canary": order.version, "share": order.share})


async def shadow(service: Service, call: Call) -> Reply:
    """Have a version score what others answer."""
    registry = _registry(service, call)
    version = (await _order_body(call, _version)).version
    await _ordered(lambda: registry.set_shadow(version))
    return json_reply({"shadow": version})


async def load_all(service: Service, call: Call) -> Reply:
    """The Open Inference Protocol's load: the newest version there is."""
    registry = _registry(service, call)
    await call.body()
    versions = [status.version for status in registry.status()]
    if not versions:
        raise HttpError(404, f"{call.params['model']}: there is no version to load")
    await _ordered(lambda: registry.load(versions[-1], wait_s=_LOAD_S))
    return Reply(b"")


async def unload_all(service: Service, call: Call) -> Reply:
    """The Open Inference Protocol's unload: every version."""
    registry = _registry(service, call)
    await call.body()
    for status in registry.status():
        if status.state in ("ready", "loading", "available"):
            version = status.version
            await _ordered(lambda version=version: registry.unload(version))  # type: ignore[misc]
    return Reply(b"")


VERBS = {
    "load": (load, VersionOrder),
    "unload": (unload, VersionOrder),
    "rollback": (rollback, VersionOrder),
    "label": (label, LabelOrder),
    "canary": (canary, CanaryOrder),
    "shadow": (shadow, VersionOrder),
}
REPOSITORY = {"load": load_all, "unload": unload_all}
