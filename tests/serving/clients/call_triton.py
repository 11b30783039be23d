"""Call a server with tritonclient, over HTTP (binary tensors, its default) and gRPC.

Run by test_clients.py in an environment of its own: PORT, GRPC_ADDRESS.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http


def call(module: Any, url: str) -> list[float]:
    client = module.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("apps")
    client.get_model_metadata("apps")
    client.get_model_repository_index()
    age = module.InferInput("age", [3], "FP64")
    age.set_data_from_numpy(np.array([20.5, 31.0, 50.0]))
    app = module.InferInput("app", [3, 1], "BYTES")
    app.set_data_from_numpy(np.array([["maps"], ["игра"], ["no one's"]], dtype=object))
    everything = client.infer("apps", [age, app]).as_numpy("score")
    wanted = [module.InferRequestedOutput("score")]
    named = client.infer("apps", [age, app], outputs=wanted, model_version="1", request_id="r")
    assert named.as_numpy("score").tolist() == everything.tolist()
    client.get_inference_statistics("apps")
    try:
        client.infer("none", [age])
    except module.InferenceServerException as error:
        assert "got model 'none'" in str(error)
    else:
        raise AssertionError("a model that is not there answered")
    found: list[float] = everything.tolist()
    return found


if __name__ == "__main__":
    over_http = call(tritonclient.http, f"127.0.0.1:{sys.argv[1]}")
    over_grpc = call(tritonclient.grpc, sys.argv[2])
    assert over_http == over_grpc
    print(json.dumps(over_http))
