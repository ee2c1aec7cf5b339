"""One file per architecture. A newcomer adds a model with one file here, one line in `zoo.py` and one parity test."""
