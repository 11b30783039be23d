"""One run of training: its steps, progress, evaluation, state and export.

`widedeep.training.trainer` ties them together.
"""
