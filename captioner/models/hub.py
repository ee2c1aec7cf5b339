"""Any image-to-text model that transformers knows, through its own processor, chat template and `generate`.

GIT, ViT-GPT2, BLIP-2, Florence-2, PaliGemma, Qwen2.5-VL, SmolVLM … What is asked is the request's instruction or style,
in the words of parts/instructions.py where it names none. A model's own code is run only where the user has said so.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BatchFeature,
    BitsAndBytesConfig,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from captioner import compute
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, MissingExtra
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones.preprocess import LARGEST, image_settings
from captioner.models.parts.chat import Chat, has_template
from captioner.models.parts.instructions import PLAIN, Instructions, instructions_for
from captioner.models.parts.processors import load_processor
from captioner.models.parts.speaker import check_length
from captioner.prompt import Candidate, Reading
from captioner.search.words import forbidden_sequences

DEFAULT_DECODING = {"num_beams": 1}
"""Chat models write well without a search, and are too large for one."""
OWN_SEARCH = ("num_beams", "no_repeat_ngram_size", "repetition_penalty", "length_penalty", "early_stopping")
"""Settings that a checkpoint's generation_config.json may name; that it draws at random is not taken over."""
CONVERTED = {
    "florence2": "florence-community (Florence-2-base, Florence-2-large …)",
    "internvl_chat": "OpenGVLab (names that end in -hf, e.g. InternVL3-1B-hf)",
    **dict.fromkeys(("llava_llama", "llava_mistral", "llava_qwen"), "llava-hf"),
}
"""Kinds that were published in a layout of their authors', and who has them in that of transformers."""
NO_FLOAT64 = ("kosmos-2",)
"""Kinds that transformers itself cannot run in it."""


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
        asked = {"instruction", "style"} if instructions.styles else {"instruction"}
        self.uses = frozenset() if _paired(model.config) else frozenset(asked)
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

    @property
    def longest(self) -> int | None:
        """New tokens that it can write after the shortest start."""
        return self.positions

    @torch.inference_mode()
    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        instruction = request.instruction or self.instructions.of_style(request.style)
        if not decoding.do_sample:
            return self._generate(images, decoding, instruction)
        readings = []
        for image in images:  # one by one: what is drawn depends on the picture, not on its place in the batch
            with torch.random.fork_rng([self.model.device] if self.model.device.type == "cuda" else []):
                if decoding.seed is not None:
                    torch.manual_seed(zlib.crc32(image.tobytes(), decoding.seed & 0xFFFFFFFF))
                readings += self._generate([image], decoding, instruction)
        return readings

    def _generate(self, images: Sequence[Image], decoding: Decoding, instruction: str | None) -> list[Reading]:
        inputs = self._inputs(list(images), instruction).to(self.model.device, self.model.dtype)
        told = self._told(inputs, len(images))
        if self.positions is not None:  # the last token that is written is never read
            check_length(max(0, self.positions - told.shape[1] + 1), told.shape[1], decoding)
        found = self.model.generate(
            **inputs,
            **settings(decoding),
            logits_processor=self._word_rules(decoding),
            return_dict_in_generate=True,
            output_scores=True,
        )
        written, count = found.sequences, decoding.num_return_sequences
        if torch.equal(written[:, : told.shape[1]], told.repeat_interleave(count, 0)):
            written = written[:, told.shape[1] :]  # most decoders repeat what they were told
        scores = self._scores(found)
        readings = []
        for first in range(0, len(written), count):
            rows = range(first, first + count)
            each = [self._candidate(written[n].tolist(), scores[n], decoding.max_new_tokens) for n in rows]
            readings.append(Reading(tuple(sorted(each, key=lambda candidate: -candidate.score))))
        return readings

    def _inputs(self, images: list[Image], instruction: str | None) -> BatchFeature:
        """What the model reads: pixels, and the ids of what it is told."""
        if instruction is None:
            pixels = self.pixels(images=images, return_tensors="pt")
            return pixels if self.model.config.model_type != "blip-2" else self._after_queries(pixels)
        if self.chat is not None:
            return self._asked(images, self.chat.text(instruction))
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


# --- loading ----------------------------------------------------------------------------------------------------------


def load(folder: Path, options: LoadOptions) -> HubModel:
    """A folder in the layout of transformers."""
    if (folder / "adapter_config.json").is_file():
        raise BadCheckpoint(f"{folder} is an adapter of a foreign model. Merge it into its base and name the result.")
    where = compute.device(options.device)
    quantized = _quantization(options, where)  # said before anything large is read
    trust = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    config = _config(folder, trust)
    _check_pictures(folder)
    try:
        with checkpoint.reading(folder):
            pixels, tokenizer = _processor(folder, config, trust)
            chats = has_template(pixels) and config.model_type not in PLAIN
            instructions = instructions_for(config, chats)
            chat = Chat(pixels, folder, instructions.system) if chats else None
    except ImportError as error:
        if "torchvision" in str(error).lower():
            raise MissingExtra(
                f"The processor of {folder} needs torchvision: `pip install torchvision`, in the release that goes "
                "with your torch."
            ) from error
        raise MissingExtra(f"The processor of {folder} needs a package: {checkpoint.reason(error)}.") from error
    if chat is None and config.model_type not in PLAIN and getattr(pixels, "image_token", None) is not None:
        raise BadCheckpoint(
            f"{folder} has no chat template, and its model needs one. Copy chat_template.jinja (or chat_template.json) "
            "from the model this one was made from."
        )
    dtype = _dtype(options, where)
    if dtype == torch.float64 and config.model_type in NO_FLOAT64:
        raise BadInput(f"Models of the kind {config.model_type!r} cannot be run in float64. Use --precision fp32.")
    model = _model(folder, config, dtype, trust | quantized)
    model = model.eval().requires_grad_(False)
    _check_starts(model, folder)
    return HubModel(model if quantized else model.to(where), pixels, tokenizer, instructions, chat)


def _check_starts(model: PreTrainedModel, folder: Path) -> None:
    """The tokens that every text begins with must be among those that the model knows."""
    own, words = model.generation_config, model.config.get_text_config(decoder=True)
    if (vocabulary := getattr(words, "vocab_size", None)) is not None:
        checkpoint.check_ids(folder, vocabulary, (own.bos_token_id, own.decoder_start_token_id, own.pad_token_id))


def _quantization(options: LoadOptions, where: torch.device) -> dict:
    if options.load_in is None:
        return {}
    if options.load_in not in ("8bit", "4bit"):
        raise BadInput(f"Weights cannot be loaded in {options.load_in!r}: use --load-in 8bit or 4bit.")
    if where.type != "cuda":
        raise BadInput(f"--load-in {options.load_in} needs a CUDA GPU, and this runs on {where.type}. Leave it out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra(f"--load-in {options.load_in} needs bitsandbytes: `pip install bitsandbytes`.")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": _dtype(options, where)}
    how = BitsAndBytesConfig(**four) if options.load_in == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": how, "device_map": {"": where}}


def _dtype(options: LoadOptions, where: torch.device) -> torch.dtype:
    precision = compute.precision(options.precision, where)
    if precision == "int8":
        raise BadInput("Hub models have no int8 on a CPU: use --precision bf16; on a GPU there is --load-in 8bit.")
    return compute.DTYPES[precision]


def _config(folder: Path, trust: dict) -> PreTrainedConfig:
    """Its configuration, if it is of a kind that we can run."""
    said = checkpoint.check(folder)
    kind = said.get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, **trust)
    except (OSError, ValueError, KeyError) as error:
        if kind in CONVERTED:
            raise BadCheckpoint(
                f"{folder} holds a {kind!r} model in a layout of its authors' that transformers does not read. On the "
                f"Hub, {CONVERTED[kind]} has it in one that it reads: name that."
            ) from error
        if "auto_map" in said and not trust["trust_remote_code"]:
            raise BadCheckpoint(
                f"{folder} holds a {kind!r} model with its own code, which we do not run unasked. "
                "If you trust its source, add --trust-remote-code."
            ) from error
        raise BadCheckpoint(f"transformers does not know the {kind!r} model in {folder}. Try a newer one.") from error
    except Exception as error:  # whatever broken numbers raise
        raise BadCheckpoint(
            f"{folder}/config.json does not describe a {kind!r} model: {checkpoint.reason(error)}"
        ) from error
    known = _paired(config) or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not known and not (trust["trust_remote_code"] and "auto_map" in said):
        raise BadCheckpoint(
            f"{folder} holds a {kind!r} model, which does not write about pictures. Name one that does."
        )
    return config


def _check_pictures(folder: Path) -> None:
    """Refuse pictures of a size that fills the memory."""
    for size in ((image_settings(folder) or {}).get(key) for key in ("size", "crop_size")):
        edges = [size] if isinstance(size, int) else list(size.values()) if isinstance(size, dict) else []
        if isinstance(size, dict) and "longest_edge" in size:
            continue  # some mean numbers of pixels by it
        if not all(isinstance(edge, int) and 0 < edge <= LARGEST for edge in edges if edge is not None):
            raise BadCheckpoint(f"The processor of {folder} wants pictures of {size}, which cannot be. Fetch it again.")


def _paired(config: PreTrainedConfig) -> bool:
    """An image encoder and a text decoder put together, as ViT-GPT2 is: it has no processor of its own."""
    return isinstance(config, VisionEncoderDecoderConfig)


def _processor(folder: Path, config: PreTrainedConfig, trust: dict) -> tuple[Any, PreTrainedTokenizerBase]:
    """Pictures (and text) → what the model reads, and the tokenizer. By Pillow: the other way needs torchvision."""
    if not _paired(config):
        processor: Any = load_processor(folder, config, trust)
        if getattr(processor, "num_query_tokens", 0) is None:  # an old BLIP-2: its processor did not know
            processor.num_query_tokens = config.num_query_tokens
        return processor, processor.tokenizer
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
    return pixels, AutoTokenizer.from_pretrained(folder, **trust)


def _model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, how: dict) -> PreTrainedModel:
    """Every weight must be there but those that no caption needs; what is too many belongs to older versions."""
    cls: Any = VisionEncoderDecoderModel if _paired(config) else AutoModelForImageTextToText
    checkpoint.weights_files(folder)
    with checkpoint.reading(folder):
        packed = getattr(config, "quantization_config", None) is not None  # a weight is less than a byte
        if not how["trust_remote_code"] and not packed:  # a model's own code may be built in its own way
            build = cls if _paired(config) else cls.from_config
            checkpoint.check_shape(lambda: build(config=config), folder)
        model, report = cls.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True, **how)
    if not how.keys() & {"quantization_config"}:
        checkpoint.check_numbers(model, folder)
    if lost := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise BadCheckpoint(f"The weights in {folder} lack {len(lost)} tensors, among them {lost[0]}. Fetch it again.")
    return model
