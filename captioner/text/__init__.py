"""Candidates → prompt → vector: what is done to a text after a model has written it."""
