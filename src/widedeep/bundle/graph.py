"""TowerGraph: towers of one's own, exported to ONNX and run by ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import BundleError

_OUTPUT = "logits_BC"


class TowerGraph:
    """A graph from the gathered deep input to the towers' part of the logits."""

    def __init__(self, path: Path, *, width: int, n_logits: int, extra: Mapping[str, int]) -> None:
        # Kept: the file may be replaced before another number of threads asks for a session.
        self._graph = path.read_bytes()
        self._runtime = _runtime()
        self._sessions: dict[int, Any] = {}
        self._lock = threading.Lock()
        session = self._session(1)
        offered = {"concat_BX": width, **{f"extra/{name}": size for name, size in extra.items()}}
        self._inputs = [entry.name for entry in session.get_inputs()]
        for entry in session.get_inputs():
            if entry.name not in offered or entry.shape[1:] != [offered[entry.name]]:
                raise BundleError(
                    f"{path}: got the input {entry.name!r} of shape {entry.shape}, expected "
                    f"{offered} with B rows; export the towers with this version of widedeep"
                )
        (output,) = session.get_outputs()
        if output.name != _OUTPUT or output.shape[1:] not in ([n_logits], [None]):
            raise BundleError(
                f"{path}: got the output {output.name!r} of shape {output.shape}, expected "
                f"'{_OUTPUT}' of shape (B, {n_logits})"
            )

    def _session(self, threads: int) -> Any:
        with self._lock:
            if threads not in self._sessions:
                options = self._runtime.SessionOptions()
                options.intra_op_num_threads = threads
                options.inter_op_num_threads = 1
                try:
                    self._sessions[threads] = self._runtime.InferenceSession(
                        self._graph, options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # ONNX Runtime has no base class of its own
                    raise BundleError(
                        f"ONNX Runtime cannot read the towers: {error}; install a newer one "
                        "(pip install -U 'widedeep[onnx]'), or export again"
                    ) from error
            return self._sessions[threads]

    def run(
        self,
        concat_BX: NDArray[np.float32],
        extra: Mapping[str, NDArray[np.float32]],
        *,
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Return the towers' part of the logits, (B, C)."""
        given = {"concat_BX": concat_BX}
        given |= {f"extra/{name}": np.ascontiguousarray(part) for name, part in extra.items()}
        session = self._session(threads)
        (found,) = session.run([_OUTPUT], {name: given[name] for name in self._inputs})
        logits_BC: NDArray[np.float32] = found
        return logits_BC


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(
            "this bundle has towers of its own, which ONNX Runtime computes, and it is not "
            "installed; run: pip install 'widedeep[onnx]'"
        ) from error
    return onnxruntime
