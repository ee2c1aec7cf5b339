"""Several models as one: the weighted sum of their unit vectors, and how weights are fitted."""

from captioner.models.ensemble.ensemble import load

__all__ = ["load"]
