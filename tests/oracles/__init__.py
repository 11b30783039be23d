"""Vectors from TensorFlow 2.15, the scripts that made them, and float64 references."""
