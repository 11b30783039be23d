"""Call a server with kserve's REST client.

Run by test_clients.py in an environment of its own: PORT.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def call(url: str) -> list[float]:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "apps")
    age = InferInput("age", [3], "FP64")
    age.set_data_from_numpy(np.array([20.5, 31.0, 50.0]), binary_data=False)
    app = InferInput("app", [3], "BYTES", data=["maps", "игра", "no one's"])
    answer = await client.infer(url, InferRequest("apps", [age, app]), model_name="apps")
    found: list[float] = answer.outputs[0].data
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(call(f"http://127.0.0.1:{sys.argv[1]}"))))
