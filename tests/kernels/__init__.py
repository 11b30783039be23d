"""Tests of the kernels: C++ against the NumPy reference."""
