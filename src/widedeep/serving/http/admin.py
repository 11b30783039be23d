"""Admin endpoints: load, unload, roll back, labels, canary, shadow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, TypeVar

import msgspec

from widedeep.errors import ConfigError, WideDeepError
from widedeep.serving.config import Settings
from widedeep.serving.http.errors import HttpError
from widedeep.serving.http.service import Call, Reply, Service, decode, json_reply
from widedeep.serving.registry import NoVersion, Registry

Result = TypeVar("Result")
_LOAD_S = 60.0
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::\d+)?")


class VersionAction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of an action on a version; the version may be None where the action allows it."""

    version: str | None = None


class LabelAction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `label`; version None removes the label."""

    label: str
    version: str | None = None


class CanaryAction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `canary`: a version and its fraction of the requests; version None ends it."""

    version: str | None = None
    share: float = 0.0


_version = msgspec.json.Decoder(VersionAction)
_label = msgspec.json.Decoder(LabelAction)
_canary = msgspec.json.Decoder(CanaryAction)


def check_operator(call: Call, settings: Settings) -> None:
    """Refuse a request that a page of another site made a browser send."""
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
        raise HttpError(403, f"got the origin {origin!r}, expected a page of this server")
    site = call.header(b"sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise HttpError(403, f"got Sec-Fetch-Site {site!r}, expected same-origin or none")
    media_type = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json"):
        raise HttpError(415, f"got Content-Type {media_type!r}, expected application/json")


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _run_action(action: Callable[[], Result]) -> Result:
    """Run an action off the event loop: it reads and writes files, and may wait."""
    return await asyncio.to_thread(run_action, action)


def run_action(action: Callable[[], Result]) -> Result:
    """Run an operator's action; raise the answer to one that fails."""
    try:
        return action()
    except NoVersion as error:
        raise HttpError(404, str(error)) from error
    except ConfigError as error:
        raise HttpError(400, str(error)) from error
    except WideDeepError as error:
        raise HttpError(409, str(error)) from error


def _registry(service: Service, call: Call) -> Registry:
    return service.models.registry(call.params["model"])


async def _action_body(call: Call, decoder: msgspec.json.Decoder[Any]) -> Any:
    call.check_media_type(b"application/json")
    return decode(await call.body() or b"{}", decoder)


def _required(version: str | None) -> str:
    if version is None:
        raise HttpError(400, "got no version; name one", pointer="/version")
    return version


async def load(service: Service, call: Call) -> Reply:
    """Load a version, and keep it loaded."""
    registry = _registry(service, call)
    version = _required((await _action_body(call, _version)).version)
    await _run_action(lambda: registry.load(version, wait_s=_LOAD_S))
    return json_reply({"loaded": version})


async def unload(service: Service, call: Call) -> Reply:
    """Stop serving a version."""
    registry = _registry(service, call)
    version = _required((await _action_body(call, _version)).version)
    await _run_action(lambda: registry.unload(version))
    return json_reply({"unloaded": version})


async def rollback(service: Service, call: Call) -> Reply:
    """Go back to an older version: the named one, or the previous one."""
    registry = _registry(service, call)
    version = (await _action_body(call, _version)).version
    serving = await _run_action(lambda: registry.rollback(version, wait_s=_LOAD_S))
    return json_reply({"serving": serving})


async def label(service: Service, call: Call) -> Reply:
    """Give a version a label."""
    registry = _registry(service, call)
    action: LabelAction = await _action_body(call, _label)
    await _run_action(lambda: registry.set_label(action.label, action.version))
    return json_reply({"label": action.label, "version": action.version})


async def canary(service: Service, call: Call) -> Reply:
    """Let a version answer a fraction of the requests."""
    registry = _registry(service, call)
    action: CanaryAction = await _action_body(call, _canary)
    await _run_action(lambda: registry.set_canary(action.version, action.share))
    return json_reply({"canary": action.version, "share": action.share})


async def shadow(service: Service, call: Call) -> Reply:
    """Let a version score the requests that others answer."""
    registry = _registry(service, call)
    version = (await _action_body(call, _version)).version
    await _run_action(lambda: registry.set_shadow(version))
    return json_reply({"shadow": version})


async def load_all(service: Service, call: Call) -> Reply:
    """Load the newest version, as the Open Inference Protocol has it."""
    registry = _registry(service, call)
    await call.body()
    await _run_action(lambda: registry.load_newest(wait_s=_LOAD_S))
    return Reply(b"")


async def unload_all(service: Service, call: Call) -> Reply:
    """Unload every version, as the Open Inference Protocol has it."""
    registry = _registry(service, call)
    await call.body()
    await _run_action(registry.unload_all)
    return Reply(b"")


VERBS = {
    "load": (load, VersionAction),
    "unload": (unload, VersionAction),
    "rollback": (rollback, VersionAction),
    "label": (label, LabelAction),
    "canary": (canary, CanaryAction),
    "shadow": (shadow, VersionAction),
}
REPOSITORY = {"load": load_all, "unload": unload_all}
