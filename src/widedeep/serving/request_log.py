"""RequestLog: a line of JSON for each request that an operator wants to know of."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import IO, Any


class RequestLog:
    """Writes one JSON object a line: to standard error, where a service's log belongs."""

    def __init__(self, which: str = "errors", stream: IO[str] | None = None) -> None:
        self._least = {"all": 0, "errors": 500}.get(which, 1000)
        self._stream = stream
        self.lost = 0

    def wants(self, status: int) -> bool:
        """Tell whether a request with this status is logged."""
        return status >= self._least

    def request(self, **fields: Any) -> None:
        """Log a request; fields that are None are left out."""
        self.event("request", **{k: v for k, v in fields.items() if v is not None})

    def bug(self, error: BaseException, **fields: Any) -> None:
        """Log what ought not to happen, with where it happened."""
        told = "".join(traceback.format_exception(error))
        self.event("bug", **fields, traceback=told)

    def event(self, event: str, **fields: Any) -> None:
        """Log that something happened to the server."""
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{at}.{int(now % 1 * 1e3):03d}Z", "event": event, **fields}
        text = json.dumps(line, separators=(",", ":"), default=str)
        try:
            print(text, file=self._stream or sys.stderr, flush=True)
        except (OSError, ValueError):  # the latter is a closed stream
            self.lost += 1
