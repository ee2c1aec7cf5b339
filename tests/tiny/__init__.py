"""Tiny, randomly initialised checkpoints in the real file format: one module per family, each with `make(folder)`.

A test asks for one by `tiny_checkpoint("blip")`; it is made once a session.
"""
