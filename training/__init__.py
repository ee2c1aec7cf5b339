"""Training: `python -m training.<model>`, one short file per model over `loop.py`."""
