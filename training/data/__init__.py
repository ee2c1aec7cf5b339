"""Data: sources, cleaning, de-duplication, cached features, synthesis. `python -m training.data --help`."""
