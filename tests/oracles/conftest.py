"""Keeps pytest's doctest collection out of the scripts that need TensorFlow."""

collect_ignore_glob = ["make_tensorflow_*.py", "tensorflow_*.py"]
