"""Names → pictures: find them, fetch them, open them safely, read what they carry."""

from captioner.files.names import is_url
from captioner.images.fetch import MAX_BYTES, fetch_image
from captioner.images.find import EXTENSIONS, Source, find_images, is_there, looks_like_picture, reads_once
from captioner.images.open import MAX_PIXELS, identified, open_image

__all__ = [
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Source",
    "fetch_image",
    "find_images",
    "identified",
    "is_there",
    "is_url",
    "looks_like_picture",
    "open_image",
    "reads_once",
]
