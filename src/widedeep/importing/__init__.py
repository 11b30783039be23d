"""Models of other libraries, read without them and carried over."""

from widedeep.importing.tensor_bundle import TensorBundle

__all__ = ["TensorBundle"]
