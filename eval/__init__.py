"""Evaluation: `python -m eval --help`."""
