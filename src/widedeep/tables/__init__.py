"""Embedding tables: rows of a feature's ids, their optimizer state, storage and devices."""
