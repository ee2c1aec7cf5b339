"""Correct the texts of a folder of pictures: edits and the way back, a filter language, edits of many at once."""

from captioner.review.filter import BadFilter
from captioner.review.operations import OPERATIONS, Append, BadPattern, DeleteTerm, Operation, Prepend, Replace
from captioner.review.review import Conflict, Outcome, Review, Scope, Term, Unknown
from captioner.review.row import Row

__all__ = [
    "OPERATIONS",
    "Append",
    "BadFilter",
    "BadPattern",
    "Conflict",
    "DeleteTerm",
    "Operation",
    "Outcome",
    "Prepend",
    "Replace",
    "Review",
    "Row",
    "Scope",
    "Term",
    "Unknown",
]
