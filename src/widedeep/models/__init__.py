"""Models: towers, heads and the Wide & Deep model."""
