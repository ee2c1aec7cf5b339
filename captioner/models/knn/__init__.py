"""Reference pictures: the index, how it is built and tuned."""

from captioner.models.knn.knn import load

__all__ = ["load"]
