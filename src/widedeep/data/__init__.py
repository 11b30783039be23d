"""Logs to examples, examples to tensors."""
