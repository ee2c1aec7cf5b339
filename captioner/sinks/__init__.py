"""Where results go: .jsonl, .csv, .parquet, .npy, a Hugging Face imagefolder, .txt sidecars, standard output.

Every sink but the last keeps a journal: finished rows as JSON lines. The output itself appears in one piece when the
run is over. A run that was killed loses at most the batch in flight, and resumes from the journal to the same content
as an unbroken run. Nothing that is already there is overwritten unasked.
"""

from captioner.sinks.checks import (
    LEAST_FREE,
    RESUME,
    check_name,
    check_new,
    check_new_folder,
    check_place,
    explained,
    not_resumable,
)
from captioner.sinks.imagefolder import ImageFolder
from captioner.sinks.journal import Errors, Journal, Settings, given
from captioner.sinks.open import open_out, write_lines
from captioner.sinks.row import OnExisting, Result, Row, Sink, as_text, file_of, groups, is_finite, to_json
from captioner.sinks.sidecars import Sidecars
from captioner.sinks.stdout import Stdout
from captioner.sinks.table import FileSink

__all__ = [
    "LEAST_FREE",
    "RESUME",
    "Errors",
    "FileSink",
    "ImageFolder",
    "Journal",
    "OnExisting",
    "Result",
    "Row",
    "Settings",
    "Sidecars",
    "Sink",
    "Stdout",
    "as_text",
    "check_name",
    "check_new",
    "check_new_folder",
    "check_place",
    "explained",
    "file_of",
    "given",
    "groups",
    "is_finite",
    "not_resumable",
    "open_out",
    "to_json",
    "write_lines",
]
