"""Two models on the same rows: scores, bootstrap statistics, slices and drift; no torch."""
