"""uvicorn (httptools, uvloop), msgspec and ONNX Runtime: PORT FOLDER."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import uvicorn
from onnx_ranker import OnnxRanker

RANKER = OnnxRanker(sys.argv[2])


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer POST /v1/rank; any other path says that it is there."""
    if scope["type"] != "http":
        return
    body = b""
    if scope["method"] == "POST":
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = msgspec.json.decode(body)
        items, scores = RANKER.rank(asked["user"], asked["candidates"])
        body = msgspec.json.encode({"items": items, "scores": scores})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        log_level="error",
        access_log=False,
        lifespan="off",
    )
