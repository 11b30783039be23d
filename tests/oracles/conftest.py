"""Keeps pytest's doctest collection out of the scripts that need TensorFlow."""

collect_ignore_glob = ["make_tensorflow_vectors.py", "tensorflow_*.py"]
