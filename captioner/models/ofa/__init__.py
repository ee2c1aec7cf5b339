"""OFA, tiny to huge: asks the picture a question and writes the answer. Reads the published folders as they are.

A published folder does not say how large its pictures were; `trained_size` knows what each size of model was
pretrained with. For a model fine-tuned otherwise (caption checkpoints: 480), put a preprocessor_config.json with
`{"size": 480}` beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

from torch import Tensor

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.errors import BadCheckpoint, BadInput
from captioner.models.ofa.config import PUBLISHED, RESNET_DEPTHS, OFAConfig
from captioner.models.ofa.decoder import Memory
from captioner.models.ofa.model import OFA
from captioner.models.ofa.processor import QUESTION, OFAProcessor
from captioner.models.parts import checkpoint
from captioner.models.parts.speaker import SearchedDecoder

__all__ = ["DEFAULT_DECODING", "OFA", "Answerer", "OFAConfig", "OFAProcessor", "check_form", "load", "processor_for"]

MOST_POSITIONS = 1024
"""Between words: the relative tables know no larger distance."""
DEFAULT_DECODING = {
    "num_beams": 5,
    "min_new_tokens": 1,
    "max_new_tokens": 17,
    "no_repeat_ngram_size": 3,
    "early_stopping": True,
}
"""Those of OFA's own generator: 16 words and the end, and no search beyond as many ended texts as there are beams."""


class Answerer(SearchedDecoder[Memory]):
    """OFA, ready to answer what a request asks, or its own question."""

    uses = frozenset({"prompt", "question"})
    model: OFA
    processor: OFAProcessor

    @compute.inference_mode()
    def encode(self, pixels: Tensor, request: Request = PLAIN_REQUEST) -> Tensor:
        return self.model.encode(pixels.to(self.model.device, self.model.dtype), self._question(request))

    def encoded_by(self, request: Request) -> Hashable:
        return request.question

    def remember(self, features: Tensor, request: Request = PLAIN_REQUEST) -> Memory:
        return self.model.remember(features, self._question(request))

    def look(self, pixels: Tensor, ids: Sequence[int], request: Request = PLAIN_REQUEST) -> Tensor:
        return self.model.look(pixels, ids, self._question(request))

    def _question(self, request: Request) -> list[int] | None:
        if not request.question:
            return None
        question = self.processor.question(request.question)
        if len(question) > (most := positions(self.model.config)):
            raise BadInput(f"The question is {len(question):,} tokens long, and this model reads {most:,}. Shorten it.")
        return question


def positions(config: OFAConfig) -> int:
    """Tokens of a question, or of a text."""
    return min(config.max_position_embeddings, MOST_POSITIONS)


def load(folder: Path, options: LoadOptions) -> Answerer:
    """A published or fine-tuned checkpoint."""
    check_form(checkpoint.base_folder(folder))
    model = checkpoint.load_pretrained(OFA, folder, options, encoder="encoder")
    processor = processor_for(model, folder)
    ids = (*processor.start_ids, *processor.eos_ids, processor.pad_id, model.config.pad_token_id)
    checkpoint.check_ids(folder, model.config.vocab_size, ids)
    return Answerer(model, processor, positions(model.config))


def processor_for(model: OFA, folder: Path, question: str | None = None) -> OFAProcessor:
    """The processor of this folder; the model is told what to ask. A question that is given is saved with the model."""
    processor = OFAProcessor.from_folder(folder, trained_size(model.config))
    if (tokens := processor.tokenizer.get_vocab_size()) > model.config.vocab_size:
        raise BadCheckpoint(
            f"The tokenizer in {folder} has {tokens} tokens, codes and coordinates included, the model only "
            f"{model.config.vocab_size}. Copy vocab.json and merges.txt that belong to the model."
        )
    model.config.question = question or model.config.question
    model.question = processor.question(model.config.question or QUESTION)
    return processor


def trained_size(config: OFAConfig) -> int:
    """Pixels a side in the published pretraining."""
    return 256 if config.d_model <= 512 else 384 if config.d_model <= 768 else 480


def check_form(folder: Path) -> None:
    """Say so if the folder holds a relative of OFA that computes otherwise."""
    config = checkpoint.read_config(folder)
    other = [key for key, value in PUBLISHED.items() if config.get(key, value) != value]
    if str(config.get("resnet_type", "resnet101")) not in RESNET_DEPTHS:
        other.append("resnet_type")
    if other:
        values = ", ".join(f"{key} = {config[key]!r}" for key in other)
        raise BadCheckpoint(f"{folder} is a form of OFA that captioner does not run ({values}). Use an OFA-Sys model.")
