"""The HTTP server: rank, the Open Inference Protocol, TensorFlow Serving's REST API, health."""

from widedeep.errors import extra_imports

with extra_imports():
    from widedeep.serving.config import Settings, find_models
    from widedeep.serving.http.app import App
    from widedeep.serving.http.auth import Keys
    from widedeep.serving.http.server import serve
    from widedeep.serving.http.service import Models, Ranked, Service

__all__ = ["App", "Keys", "Models", "Ranked", "Service", "Settings", "find_models", "serve"]
