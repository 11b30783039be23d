"""One run of training: its steps, progress, evaluation, state and export.

`widedeep.trainer` ties them together.
"""
