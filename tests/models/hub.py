"""What the tests of foreign models share."""

from __future__ import annotations

from PIL.Image import Image

from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.models import hub
from tests.decoders import pictures

EXACT = LoadOptions(precision="float64")


def sizes() -> list[Image]:
    """Pictures that some families read in different numbers of pieces."""
    return [*pictures(2), pictures(1, 5)[0].resize((150, 50)), pictures(1, 7)[0].resize((40, 130))]


def said(speaker: hub.HubModel, request: Request = PLAIN_REQUEST) -> list[str]:
    readings = speaker.read_images(sizes(), Decoding(num_beams=1, max_new_tokens=6), request)
    return [reading.candidates[0].text for reading in readings]
