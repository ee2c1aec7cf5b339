"""The bundled model in plain torch: weights and numbers as `clip_prefix.load` gives them, in half the start-up time.

transformers' model classes take longer to import than torch itself, and longer than a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from captioner import compute, memory
from captioner.compute import Conv1D
from captioner.contracts import PLAIN_REQUEST, LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint
from captioner.files.json import read_object
from captioner.models.parts.backbones.efficientnet_lite import EfficientNetLite
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.prefix.layers import JointHead, MlpMapper, PrefixDecoder, PrefixProcessor, PrefixSpeaker
from captioner.prompt import Reading
from captioner.search.draws import search_seed

AT_ONCE = 2
"""Pictures that go through the backbone together."""


class Mini(PrefixDecoder, nn.Module):
    """EfficientNet-Lite2, head, mapper, GPT-2 and gist under the key names of the clip-prefix family."""

    backbone: Statistics
    head: JointHead
    fixed = True
    traced_after = 300
    """About a dozen pictures, one by one: a trace takes 0.13 to 0.16 s, of which a step wins 0.5 ms back (AVX2)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.normalize = self.config.normalize
        gpt2 = SimpleNamespace(**config["gpt2"])
        self.backbone = Statistics()
        self.head = JointHead(self.backbone.width, self.config.joint_dim, **self.config.head)
        self.mapper = MlpMapper(self.config.joint_dim, self.config.prefix_length, gpt2.n_embd)
        self.gpt = Gpt2(gpt2)
        self.gist = nn.Embedding(gpt2.vocab_size, self.config.joint_dim)


class MiniSpeaker(PrefixSpeaker):
    """On a CPU, parts of a batch side by side, each on one thread.

    A small model's products end too soon for several threads to share them: 8 pictures took as long on two threads as
    on one.
    """

    model: Mini

    def read_images(
        self, images: Sequence[Image], decoding: Decoding, request: Request = PLAIN_REQUEST
    ) -> list[Reading]:
        threads = min(torch.get_num_threads(), len(images))
        if threads == 1 or self.model.device.type != "cpu":
            return super().read_images(images, decoding, request)
        if decoding.do_sample:
            decoding = replace(decoding, seed=search_seed(decoding))  # drawn once for all
        _ = self.model.traced  # before any thread asks for it
        size = -(-len(images) // threads)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        read = super().read_images
        readings = compute.side_by_side().map(lambda part: read(part, decoding, request), parts)
        return list(chain.from_iterable(readings))


class Statistics(nn.Module):
    """The backbone; `tower` is its name in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = EfficientNetLite("lite2")
        self.width = self.tower.statistics_width

    def pooled(self, pixels: Tensor) -> Tensor:
        # One or two pictures' maps stay in a core's cache, and larger ones are memory that is taken anew each time.
        return torch.cat([self.tower.statistics(some) for some in pixels.split(AT_ONCE)])


class Unfilled(TorchFunctionMode):
    """Modules made meanwhile take memory for their weights only when these are loaded. (On torch's device "meta",
    which is there for that, random values import a compiler.)"""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (named or {}).get("tensor", *arguments[:1])
        return function(*arguments, **(named or {}))


class HalfHead(JointHead):
    """A head whose large matrices stay in float16, as they are in the file, and are multiplied in fp32: the same
    numbers."""

    def __init__(self, head: JointHead) -> None:
        nn.Module.__init__(self)
        for name, part in chain(head.named_parameters(recurse=False), head.named_children()):
            setattr(self, name, part)
        self.recalled = _linear(head.values.T)
        del self.keys, self.values
        compute.read_as_half(self)
        self.near = _linear(head.keys)  # in float16 its short rows would be padded, to twice the memory of fp32

    def likeness(self, picture: Tensor) -> Tensor:
        return self.near(picture)

    def recall(self, shares: Tensor) -> Tensor:
        return self.recalled(shares)


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


class Gpt2(nn.Module):
    """GPT-2's modules as `PrefixDecoder` walks through them."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


class Transformer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config.n_embd) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * width, width)
        self.c_proj = Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


def load(folder: Path, options: LoadOptions) -> MiniSpeaker:
    """The bundled folder → a speaker."""
    file = folder / "model.safetensors"
    try:
        config = read_object(folder / "config.json")
        weights = load_file(file)
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        preprocess = Preprocess.from_dict(config["backbone"]["preprocess"])
        with Unfilled():
            model = Mini(config)
        unmatched = model.load_state_dict({name: part.float() for name, part in weights.items()}, False, assign=True)
        del weights
        model.gpt.lm_head.weight = model.gpt.transformer.wte.weight
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadCheckpoint(f"The model in {folder} is damaged ({error}). Reinstall captioner.") from error
    if unmatched.unexpected_keys or set(unmatched.missing_keys) - {"gpt.lm_head.weight"}:
        raise BadCheckpoint(f"The model in {folder} lacks weights. Reinstall captioner.")
    processor = PrefixProcessor(preprocess, tokenizer, model.config)
    positions = model.gpt.config.n_positions - model.config.prefix_length
    model = compute.prepare(model, options, small=nn.ModuleList([model.gpt, model.head]))
    if model.device.type == "cpu" and model.dtype == torch.float32:
        model.backbone.tower.pack()
        model.head = HalfHead(model.head)
        with safe_open(file, "pt") as stored:  # of a table that stays in the file only the rows looked up are read
            model.gist = nn.Embedding.from_pretrained(stored.get_tensor("gist.weight"))
        memory.give_back()
    return MiniSpeaker(model, processor, positions)
