"""A caption and the terms that CLIP finds nearest to the picture."""

from captioner.models.interrogator.interrogator import load

__all__ = ["load"]
