"""An mlserver model around ONNX Runtime; bench_serve.py writes its settings."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_ranker import OnnxRanker


class Ranking(MLModel):
    """Takes the user's columns and the candidates' ids as tensors."""

    async def load(self) -> bool:
        """Read the model and the catalogue."""
        self._ranker = OnnxRanker(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Rank."""
        user, candidates = {}, []
        for given in payload.inputs:
            if given.name == "candidates":
                candidates = StringCodec.decode_input(given)
            else:
                user[given.name] = given.data[0]
        items, scores = self._ranker.rank(user, candidates)
        outputs = [
            StringCodec.encode_output("items", items),
            NumpyCodec.encode_output("scores", np.array(scores)),
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
