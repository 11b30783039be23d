"""What an operator may ask of a server: load, unload, roll back, labels, canary, shadow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from widedeep.errors import ConfigError, WideDeepError
from widedeep.serving.http.call import Call, Reply, decode, json_reply
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Service
from widedeep.serving.registry import NoVersion, Registry

__all__ = ["REPOSITORY", "VERBS"]

Result = TypeVar("Result")
_LOAD_S = 60.0


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
    known = [status.version for status in registry.status()]
    if not known:
        raise HttpError(404, f"{call.params['model']}: there is no version to load")
    await _ordered(lambda: registry.load(known[-1], wait_s=_LOAD_S))
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
