"""A model of transformers that writes through its own `generate`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    BatchFeature,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VisionEncoderDecoderConfig,
)

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, Request
from captioner.decoding import Decoding
from captioner.models.hub.chat import Chat
from captioner.models.parts.instructions import Instructions
from captioner.models.parts.speaker import within_positions
from captioner.prompt import Candidate, Reading
from captioner.quiet import without_bars
from captioner.search.draws import search_seed
from captioner.search.words import forbidden_sequences

OWN_SEARCH = ("num_beams", "no_repeat_ngram_size", "repetition_penalty", "length_penalty", "early_stopping")
"""Settings that a checkpoint's generation_config.json may name; that it draws at random is not taken over."""


class HubModel:
    """A model of transformers that speaks through its own `generate`."""

    def __init__(
        self,
        model: PreTrainedModel,
        pixels: ProcessorMixin,
        tokenizer: PreTrainedTokenizerBase,
        instructions: Instructions,
        chat: Chat | None,
    ) -> None:
        self.model: Any = model  # `generate` is not told of in its class
        self.pixels = pixels
        """The processor; of a vision-encoder-decoder model the image processor alone."""
        self.tokenizer = tokenizer
        self.instructions = instructions
        own = {name: getattr(model.generation_config, name) for name in OWN_SEARCH}
        self.own_decoding = {"max_new_tokens": instructions.max_new_tokens}
        """How its authors search, and how long its default instruction makes it talk."""
        self.own_decoding |= {name: value for name, value in own.items() if value is not None}
        self.chat = chat
        """How it is asked, where it is a chat model."""
        asked = {"instruction": True, "style": bool(instructions.styles), "prompt": chat is not None}
        self.uses = frozenset() if is_paired(model.config) else frozenset(name for name in asked if asked[name])
        tokenizer.padding_side = "left"  # what is generated follows the prompt at once
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        words = model.config.get_text_config(decoder=True)
        self.goes_on = not (model.config.is_encoder_decoder or words.is_encoder_decoder)
        """Its decoder goes on from what it is told; others have an encoder read that."""
        self.positions: int | None = getattr(words, "max_position_embeddings", None)
        """Tokens that its decoder can read; some kinds know no limit."""
        settings = model.generation_config
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        # Its own length and sampling would only be warned about: `Decoding` says all of this.
        settings.max_length = settings.temperature = settings.top_k = settings.top_p = None

    def __getstate__(self) -> dict[str, Any]:
        """pickle refuses the hooks by which transformers gathers what layers give; it adds them anew where needed."""
        for module in self.model.modules():
            for number, hook in list(module._forward_hooks.items()):
                if hook.__module__ == "transformers.utils.output_capturing":
                    del module._forward_hooks[number]
            module.__dict__.pop("_output_capturing_hooks_installed", None)
        return self.__dict__

    @property
    def longest(self) -> int | None:
        """New tokens that it can write after the shortest start."""
        return self.positions

    @compute.inference_mode()
    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        if not decoding.do_sample:
            return self._generate(images, decoding, request)
        seed = search_seed(decoding)  # from the generator that is put back after each picture all would draw the same
        readings = []
        for image in images:  # one by one: what is drawn depends on the picture, not on its place in the batch
            with torch.random.fork_rng([self.model.device] if self.model.device.type == "cuda" else []):
                torch.manual_seed(zlib.crc32(image.tobytes(), seed & 0xFFFFFFFF))
                readings += self._generate([image], decoding, request)
        return readings

    def _generate(self, images: Sequence[Image], decoding: Decoding, request: Request) -> list[Reading]:
        instruction = request.instruction or self.instructions.of_style(request.style)
        inputs = self._inputs(list(images), instruction, request.prompt or "").to(self.model.device, self.model.dtype)
        told = self._told(inputs, len(images))
        start = told.shape[1]
        decoding = within_positions(self.positions, start, decoding, request)
        with without_bars():  # a start of equal texts needs no mask, whatever transformers warns of
            found = self.model.generate(
                **inputs,
                **settings(decoding),
                logits_processor=self._word_rules(decoding),
                return_dict_in_generate=True,
                output_scores=True,
            )
        written, count = found.sequences, decoding.num_return_sequences
        if torch.equal(written[:, :start], told.repeat_interleave(count, 0)):
            written = written[:, start:]  # most decoders repeat what they were told
        scores = self._scores(found)
        readings = []
        for first in range(0, len(written), count):
            rows = range(first, first + count)
            each = [self._candidate(written[n].tolist(), scores[n], decoding.max_new_tokens) for n in rows]
            readings.append(Reading(tuple(sorted(each, key=lambda candidate: -candidate.score))))
        return readings

    def _inputs(self, images: list[Image], instruction: str | None, prompt: str = "") -> BatchFeature:
        """What the model reads: pixels, and the ids of what it is told."""
        if instruction is None:
            pixels = self.pixels(images=images, return_tensors="pt")
            return pixels if self.model.config.model_type != "blip-2" else self._after_queries(pixels)
        if self.chat is not None:
            return self._asked(images, self.chat.text(instruction, prompt))
        text = self.instructions.before + instruction
        told = self.pixels(images=images, text=[text] * len(images), return_tensors="pt", padding=True)
        told.pop("labels", None)  # PaliGemma's processor prepares for training, too
        if self.model.config.model_type == "git":  # it goes on with the text, which must not end with [SEP]
            begun = {"input_ids": told["input_ids"][:, :-1], "attention_mask": told["attention_mask"][:, :-1]}
            return BatchFeature({"pixel_values": told["pixel_values"], **begun})
        return told

    def _asked(self, images: list[Image], text: str) -> BatchFeature:
        """Conversations, each about a picture of its own; many templates write the token that begins a text."""
        begins = self.tokenizer.bos_token is not None and text.startswith(str(self.tokenizer.bos_token))
        start = {"add_special_tokens": False} if begins else {}
        pictures = [[image] for image in images]
        return self.pixels(images=pictures, text=[text] * len(images), return_tensors="pt", padding=True, **start)

    def _after_queries(self, pixels: BatchFeature) -> BatchFeature:
        """How a BLIP-2 begins when it is told nothing; by itself it would not, where its text model has no start."""
        config, words = self.model.config, self.model.config.text_config
        start = words.eos_token_id if words.bos_token_id is None else words.bos_token_id
        row = torch.tensor([config.image_token_id] * config.num_query_tokens + [start])
        ids = row.repeat(len(pixels["pixel_values"]), 1)
        return BatchFeature({**pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def _told(self, inputs: BatchFeature, rows: int) -> Tensor:
        """The ids that come before what is generated `[rows, t]`."""
        if "input_ids" in inputs and self.goes_on:
            return inputs["input_ids"]
        own = self.model.generation_config
        start = own.bos_token_id if own.decoder_start_token_id is None else own.decoder_start_token_id
        return torch.full((rows, 0 if start is None else 1), start or 0, device=self.model.device)

    def _word_rules(self, decoding: Decoding) -> LogitsProcessorList:
        rules = LogitsProcessorList()
        if forbidden := forbidden_sequences(decoding.forbid, _Words(self.tokenizer)):
            rules.append(NoBadWordsLogitsProcessor(forbidden, self._eos()))
        return rules

    def _scores(self, found: Any) -> list[float]:
        """Mean log-probability of what was written, its end included; a beam search has its own score."""
        if "sequences_scores" in found:
            return found.sequences_scores.tolist()
        steps = self.model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        ends = torch.isin(found.sequences[:, -steps.shape[1] :], torch.tensor(self._eos(), device=steps.device)).int()
        counts = ends.cumsum(1) - ends == 0  # [rows, steps]: up to the first end
        return (steps.masked_fill(~counts, 0).sum(1) / counts.sum(1)).tolist()

    def _candidate(self, ids: list[int], score: float, limit: int) -> Candidate:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        if self.model.generation_config.forced_eos_token_id is not None:
            ids = ids[: limit - 1]  # the last token ends every text, whether it was at its end or not
        return Candidate(text, score, not set(self._eos()).isdisjoint(ids))

    def _eos(self) -> list[int]:
        ids = self.model.generation_config.eos_token_id
        return [] if ids is None else ids if isinstance(ids, list) else [ids]


class _Words:
    """What the rules for words need of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def settings(decoding: Decoding) -> dict[str, Any]:
    """`Decoding` as the arguments of transformers' `generate`."""
    given: dict[str, Any] = {
        "do_sample": decoding.do_sample,
        "num_beams": 1 if decoding.do_sample else decoding.num_beams,
        "num_return_sequences": decoding.num_return_sequences,
        "max_new_tokens": decoding.max_new_tokens,
        "min_new_tokens": decoding.min_new_tokens or None,
        "repetition_penalty": decoding.repetition_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
    }
    if decoding.do_sample:
        given |= {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
    elif decoding.num_beams > 1:
        given |= {"length_penalty": decoding.length_penalty, "early_stopping": decoding.early_stopping}
    return given


def is_paired(config: PreTrainedConfig) -> bool:
    """An image encoder and a text decoder put together, as ViT-GPT2 is: it has no processor of its own."""
    return isinstance(config, VisionEncoderDecoderConfig)
