"""A folder in the layout of transformers → a model that speaks, or what is missing in it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput, MissingExtra
from captioner.models.hub.chat import Chat, has_template
from captioner.models.hub.instructions import PLAIN, instructions_for
from captioner.models.hub.processors import load_processor
from captioner.models.hub.speaker import HubModel, is_paired
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones.preprocess import LARGEST, image_settings
from captioner.models.parts.instructions import Instructions
from captioner.zoo import is_adapter

CONVERTED = {
    "florence2": "florence-community (Florence-2-base, Florence-2-large …)",
    "internvl_chat": "OpenGVLab (names that end in -hf, e.g. InternVL3-1B-hf)",
    **dict.fromkeys(("llava_llama", "llava_mistral", "llava_qwen"), "llava-hf"),
}
"""Kinds that were published in a layout of their authors', and who has them in that of transformers."""
NO_FLOAT64 = ("kosmos-2",)
"""Kinds that transformers itself cannot run in it."""


def load(folder: Path, options: LoadOptions) -> HubModel:
    """A folder in the layout of transformers."""
    if is_adapter(folder):
        raise BadCheckpoint(f"{folder} is an adapter of a foreign model. Merge it into its base and name the result.")
    where = compute.device(options.device)
    quantized = _quantization(options, where)  # said before anything large is read
    trust = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    config = _config(folder, trust)
    _check_pictures(folder)
    pixels, tokenizer, instructions, chat = _ways_in(folder, config, trust)
    dtype = _dtype(options, where)
    if dtype == torch.float64 and config.model_type in NO_FLOAT64:
        raise BadInput(f"Models of the kind {config.model_type!r} cannot be run in float64. Use precision fp32.")
    model = _model(folder, config, dtype, trust | quantized)
    model = model.eval().requires_grad_(False)
    _check_starts(model, folder)
    return HubModel(model if quantized else model.to(where), pixels, tokenizer, instructions, chat)


def _ways_in(
    folder: Path, config: PreTrainedConfig, trust: dict[str, Any]
) -> tuple[Any, PreTrainedTokenizerBase, Instructions, Chat | None]:
    """What prepares its pictures and words, what it is told, and how it is asked where it chats."""
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
    return pixels, tokenizer, instructions, chat


def _check_starts(model: PreTrainedModel, folder: Path) -> None:
    """The tokens that every text begins with must be among those that the model knows."""
    own, words = model.generation_config, model.config.get_text_config(decoder=True)
    if (vocabulary := getattr(words, "vocab_size", None)) is not None:
        checkpoint.check_ids(folder, vocabulary, (own.bos_token_id, own.decoder_start_token_id, own.pad_token_id))


def _quantization(options: LoadOptions, where: torch.device) -> dict:
    if options.load_in is None:
        return {}
    if options.load_in not in ("8bit", "4bit"):
        raise BadInput(f"Weights cannot be loaded in {options.load_in!r}: use load_in 8bit or 4bit.")
    if where.type != "cuda":
        raise BadInput(f"load_in {options.load_in} needs a CUDA GPU, and this runs on {where.type}. Leave it out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra(f'load_in {options.load_in} needs bitsandbytes: pip install "captioner[train]"')
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": _dtype(options, where)}
    how = BitsAndBytesConfig(**four) if options.load_in == "4bit" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": how, "device_map": {"": where}}


def _dtype(options: LoadOptions, where: torch.device) -> torch.dtype:
    precision = compute.precision(options.precision, where)
    if precision == "int8":
        raise BadInput("Hub models have no int8 on a CPU: use precision bf16; on a GPU there is load_in 8bit.")
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
                "If you trust its source, set trust_remote_code."
            ) from error
        raise BadCheckpoint(f"transformers does not know the {kind!r} model in {folder}. Try a newer one.") from error
    except Exception as error:  # whatever broken numbers raise
        raise BadCheckpoint(
            f"{folder}/config.json does not describe a {kind!r} model: {checkpoint.reason(error)}"
        ) from error
    known = is_paired(config) or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
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


def _processor(folder: Path, config: PreTrainedConfig, trust: dict) -> tuple[Any, PreTrainedTokenizerBase]:
    """Pictures (and text) → what the model reads, and the tokenizer. By Pillow: the other way needs torchvision."""
    if not is_paired(config):
        processor: Any = load_processor(folder, config, trust)
        if getattr(processor, "num_query_tokens", 0) is None:  # an old BLIP-2: its processor did not know
            processor.num_query_tokens = config.num_query_tokens
        return processor, processor.tokenizer
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
    return pixels, AutoTokenizer.from_pretrained(folder, **trust)


def _model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, how: dict) -> PreTrainedModel:
    """Every weight must be there but those that no caption needs; what is too many belongs to older versions."""
    cls: Any = VisionEncoderDecoderModel if is_paired(config) else AutoModelForImageTextToText
    checkpoint.weights_files(folder)
    with checkpoint.reading(folder):
        packed = getattr(config, "quantization_config", None) is not None  # a weight is less than a byte
        if not how["trust_remote_code"] and not packed:  # a model's own code may be built in its own way
            build = cls if is_paired(config) else cls.from_config
            checkpoint.check_shape(lambda: build(config=config), folder)
        model, report = cls.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True, **how)
    if "quantization_config" not in how:
        checkpoint.check_numbers(model, folder)
    if lost := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise BadCheckpoint(f"The weights in {folder} lack {len(lost)} tensors, among them {lost[0]}. Fetch it again.")
    return model
