"""The contracts that hold the house together. Read this page first.

A *decoder* reads an image once and then steps; `search.py` drives it. A *processor* is its way in and out:
pictures to pixels, ids to text. A *speaker* gives readings of pictures, whatever is inside. An *image embedder*
gives unit vectors. A *model* is one of the two as everybody else sees it. `zoo.py` knows which is which by name. None
of these classes is inherited from: they say what is called.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

from captioner.decoding import Decoding, DecodingChanges, check_number, shown
from captioner.errors import BadInput, refuse_idle
from captioner.styles import STYLES, StyleName

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from captioner.prompt import Prompt, Reading


MemoryType = TypeVar("MemoryType", bound="Memory")
PastType = TypeVar("PastType", bound="Past")


class Memory(Protocol):
    """All that depends on the image alone: one row per image, never copied per beam."""

    def __len__(self) -> int:
        """The number of images."""

    def select(self: MemoryType, images: Tensor) -> MemoryType:
        """Keep these rows (finished images leave the batch)."""


class Past(Protocol):
    """What a decoder keeps of the text so far: one row per hypothesis. A step may change it in place."""

    def select(self: PastType, rows: Tensor) -> PastType:
        """Reorder to these rows (beams fork and die). The old object must not be used any more."""


class Decoder(Protocol[MemoryType, PastType]):
    """A model that `search.py` can drive, and that `training/` can train."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """What pixels are given in."""

    def encode(self, pixels: Tensor) -> Tensor:
        """The image encoder alone: pixels `[n, 3, h, w]` → features, first dimension n (cached when frozen)."""

    def remember(self, features: Tensor) -> MemoryType:
        """Everything else that depends on the image alone, e.g. cross-attention keys and values."""

    def read(self, pixels: Tensor) -> MemoryType:
        """`remember(encode(pixels))`."""

    def step(self, tokens: Tensor, memory: MemoryType, past: PastType | None) -> tuple[Tensor, PastType]:
        """Read more text. tokens `[rows, t]`, rows = images × beams, image-major (so beams = rows // len(memory));
        the first call has `past=None` and the whole start of the text, later ones t = 1.
        Returns the logits after the last token `[rows, vocabulary]` and the new past.

        A decoder with the attribute `forks = True` looks at the memory in the first call only: after that its rows are
        any number, in any order; elsewhere than on a CPU, as many of each image, side by side."""

    # Training: forward(pixel_values=None, features=None, input_ids, attention_mask, labels) -> ModelOutput with
    # `loss` (mean cross-entropy over labels != -100, labels aligned with input_ids and shifted inside) and `logits`.


@runtime_checkable
class Attentive(Protocol):
    """A decoder that attends to regions, as `attention_map.py` draws it."""

    def look(self, pixels: Tensor, ids: Sequence[int]) -> Tensor:
        """One picture `[1, 3, h, w]`, and ids that begin with the text's start → `[len(ids), grid_h, grid_w]`. Map i
        shows where the model looked when it had read ids[: i + 1], that is, as it wrote what follows ids[i]."""


class Preprocessing(Protocol):
    """Pictures → pixels, at once or in two parts: bytes are sent to a GPU sooner."""

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """RGB pictures of any size → float32 `[n, 3, h, w]`: `scaled(squares(images))`."""

    def squares(self, images: Sequence[Image]) -> Tensor:
        """RGB pictures of any size → bytes `[n, h, w, 3]`."""

    def ready(self, image: Image) -> Image:
        """A picture of which `squares` makes the same, sooner if that can be."""

    def scaled(self, squares: Tensor, dtype: torch.dtype = ...) -> Tensor:
        """Those → float32, or `dtype`, `[n, 3, h, w]`, where they lie."""


class Processor(Protocol):
    """The ways in and out of a decoder."""

    start_ids: list[int]
    """What the text begins with before the first generated token; a conditional prompt is already in it."""
    eos_ids: tuple[int, ...]
    pad_id: int

    @property
    def preprocess(self) -> Preprocessing:
        """How pictures become pixels."""

    def encode(self, text: str) -> list[int]:
        """Text → ids without any special token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids → text, special tokens left out, spacing undone."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `load` needs to make it again."""


class Speaker(Protocol):
    """Pictures in, readings out: a searched decoder, the interrogator, a foreign Hub model.

    One may also have `at_once`, the batches that it may be asked about in threads (1), `ready(image)`, a picture of
    which it reads the same, which is called in other threads, and `predicts`, whether its readings have an embedding
    (false).
    """

    uses: frozenset[str]
    """The fields of a `Request` that mean something to it, beside `decoding`."""
    longest: int | None
    """New tokens that it can write, where its positions limit them."""

    def read_images(self, images: Sequence[Image], decoding: Decoding, request: Request = ...) -> list[Reading]:
        """One reading per picture, in order. Candidates come best first."""


class ImageEmbedder(Protocol):
    """Pictures in, unit vectors out: the direct models, kNN, ensembles."""

    def embed_images(self, images: Sequence[Image]) -> np.ndarray:
        """float32 `[n, 384]`, each row of length 1."""

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """The same before it was scaled: longer where the model is surer. An ensemble may weigh by it."""


@runtime_checkable
class Finishing(Protocol):
    """What becomes of a candidate's text: `captioner.Finish`."""

    @property
    def consensus(self) -> bool | None:
        """Choose among candidates by expected cosine; None: as the model's own defaults say."""

    def body(self, raw: str, finished: bool = True) -> str:
        """The text that candidates are compared by. finished=False: the length limit cut it short."""

    def dress(self, body: str) -> str:
        """The same as it is given out, with trigger words."""


class Model(Protocol):
    """What `captioner.load` returns, whatever is inside. What it cannot do it refuses in a sentence."""

    name: str
    speaks: bool
    """False: it gives embeddings and no text."""

    @property
    def decoding(self) -> Decoding | None:
        """Its own search settings, where it searches."""

    def generate(
        self,
        images: Sequence[Image],
        request: Request | None = None,
        finish: Finishing | None = None,
        batch_size: int = 8,
    ) -> list[Prompt]:
        """One prompt per picture, in order."""

    def embed(
        self, images: Sequence[Image], request: Request | None = None, batch_size: int = 8, expected: bool = False
    ) -> np.ndarray:
        """Unit vectors `[n, d]`: of the prompts, or as the model gives them at once. expected: the mean of all that
        the model might say."""

    def vectors(self, images: Sequence[Image]) -> np.ndarray:
        """As `embed`, but where the model knows how sure it is, longer the surer."""


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded. Each architecture uses what concerns it."""

    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 or mps."""
    precision: str = "auto"
    """auto, fp32, bf16, fp16, int8 or float64 (for parity tests)."""
    caption_model: str | None = None
    """Interrogator: who writes the caption."""
    clip_model: str | None = None
    """Interrogator: who ranks the terms."""
    load_in: Literal["8bit", "4bit"] | None = None
    """Hub models: 8bit or 4bit."""
    trust_remote_code: bool = False
    """Hub models: run the code that comes with the weights."""
    embedder: str | None = None
    """Another sentence-transformers model than the packaged MiniLM-L6."""

    def __post_init__(self) -> None:
        for name in ("caption_model", "clip_model", "embedder"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        for name in ("caption_model", "clip_model", "load_in", "embedder"):
            check_text(name, getattr(self, name))
        if not isinstance(self.trust_remote_code, bool):  # a text that says no would be a yes
            raise BadInput(f"trust_remote_code is True or False, not {self.trust_remote_code!r}.")


def check_names(settings: Iterable[str], *kinds: type) -> None:
    """Refuse settings that are no fields of these, as Python refuses an argument, with the one that is meant."""
    known = [item.name for kind in kinds for item in fields(kind)]
    for name in settings:
        if name not in known:
            near = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known, n=1)
            raise TypeError(f"There is no setting {name!r}: {f'did you mean {near[0]}?' if near else ', '.join(known)}")


OTHER_NAMES = {"num_return_sequences": "num_candidates", "max_length": "max_new_tokens"} | {
    name: f"finish=captioner.Finish({name}=…)"
    for name in ("prefix", "suffix", "require", "replace", "plain", "escape", "max_clip_tokens")
}
"""Names under which a setting is looked for, and what is meant."""


def check_text(name: str, value: object) -> None:
    """Refuse what is neither a text nor left out."""
    if not isinstance(value, str | None):
        raise BadInput(f"{name} must be a text, not {type(value).__name__}.")


PRECISIONS = ("auto", "fp32", "bf16", "fp16", "float64", "int8")
"""What models compute in; auto is what suits the device."""


def check_precision(name: str) -> None:
    """Refuse what is none of them."""
    if name not in PRECISIONS:
        raise BadInput(f"There is no precision {name!r}: use one of {', '.join(PRECISIONS)}.")


Mode = Literal["best", "fast", "classic", "negative"]
"""Ways of the interrogator to join a caption and terms."""
MODES: tuple[Mode, ...] = get_args(Mode)
TERM_KINDS = ("mediums", "movements", "trending", "artists", "flavors")
"""Kinds of terms that a picture is like; those of a negative prompt are one more."""


TAG_KINDS = ("ratings", "characters", "general")
"""Kinds of a tagger's tags."""


def check_plain(plain: bool, metadata: MetadataUse) -> None:
    """Refuse what is asked of prompts that pictures carry where nobody looks for them."""
    if plain and metadata == "ignore":
        refuse_idle(["plain"], "it is about the prompts that pictures carry. Set metadata to first or only.")


def check_kinds(kinds: Iterable[str], known: Sequence[str] = TERM_KINDS) -> None:
    """Refuse what is none of them."""
    for kind in kinds:
        if kind not in known:
            raise BadInput(f"There is no kind of terms {kind!r}: use one of {', '.join(known)}.")


Quality = Literal["best", "fast"]
"""Ways of mini to choose among its texts."""
QUALITIES: tuple[Quality, ...] = get_args(Quality)
Place = Literal["first", "last"]
"""Of a rating among a tagger's tags."""
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Request:
    """What a loaded model is asked about some pictures. None is the model's own way; what a model has no use for is
    refused by name. Requests that are equal can be answered in one batch."""

    decoding: Decoding | DecodingChanges = field(default_factory=DecodingChanges)
    prompt: str | None = None
    """A conditional start of the text, e.g. "a picture of"; the answer goes on from it and does not hold it."""
    question: str | None = None
    """OFA's textual question."""
    instruction: str | None = None
    """What a chat model from the Hub is asked."""
    mode: str | None = None
    """Interrogator: one of `MODES`."""
    terms: tuple[Path, ...] | None = None
    """Interrogator: the user's own term lists."""
    style: StyleName | None = None
    """Models that can be asked: one of `captioner.styles.STYLES`, which words the instruction and the length."""
    quality: Quality | None = None
    """mini: one of `QUALITIES`: many texts, judged by MiniLM, or a few, judged by a table."""
    threshold: float | None = None
    """Tagger: the least probability of a tag that is written."""
    character_threshold: float | None = None
    """Tagger: the same of a character's name."""
    rating: Place | None = None
    """Tagger: where the likeliest rating stands, which else is left out: one of `PLACES`."""

    def __post_init__(self) -> None:
        if not isinstance(self.decoding, Decoding | DecodingChanges):
            kind = type(self.decoding).__name__
            raise BadInput(f"decoding must be a Decoding, not {kind}: leave it out, or name its settings one by one.")
        for name in ("prompt", "question", "instruction"):
            check_text(name, getattr(self, name))
        if self.terms is not None:
            object.__setattr__(self, "terms", _files_of("terms", self.terms))
        if self.style not in (None, *STYLES):
            raise BadInput(f"There is no style {self.style!r}: use one of {', '.join(STYLES)}.")
        if self.style is not None and self.instruction is not None:
            raise BadInput("A style is a ready-made instruction: give one of the two.")
        if self.mode not in (None, *MODES):
            raise BadInput(f"There is no mode {self.mode!r}: use one of {', '.join(MODES)}.")
        if self.quality not in (None, *QUALITIES):
            raise BadInput(f"There is no quality {self.quality!r}: use one of {', '.join(QUALITIES)}.")
        if self.rating not in (None, *PLACES):
            raise BadInput(f"A rating stands {' or '.join(PLACES)}, not {self.rating!r}.")
        for name in ("threshold", "character_threshold"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, 0, 1)

    __repr__ = shown

    def given(self) -> set[str]:
        """What is asked beside the decoding, by name."""
        return {item.name for item in fields(self)[1:] if getattr(self, item.name) is not None}

    def named(self) -> set[str]:
        """Everything that is asked, by name."""
        return self.given() | (
            set(self.decoding.given()) if isinstance(self.decoding, DecodingChanges) else {"decoding"}
        )

    def changed(self, **settings: Any) -> Request:
        """With these fields of its own or of `DecodingChanges`."""
        check_names(settings, Request, DecodingChanges)
        of_search = {
            name: settings.pop(name) for name in list(settings) if name in DecodingChanges.__dataclass_fields__
        }
        request = replace(self, **settings)
        if not of_search:
            return request
        if isinstance(request.decoding, Decoding):
            return replace(request, decoding=DecodingChanges(**of_search).over(request.decoding))
        return replace(request, decoding=replace(request.decoding, **of_search))


def _files_of(name: str, files: Any) -> tuple[Path, ...]:
    """A setting's files, of which one alone needs no list."""
    listed = [files] if isinstance(files, str | os.PathLike) or not isinstance(files, Iterable) else list(files)
    if not all(isinstance(file, str | os.PathLike) for file in listed):
        raise BadInput(f"{name} must be files, not {files!r}.")
    return tuple(map(Path, listed))


PLAIN_REQUEST = Request()
"""Everything is the model's own way."""

MetadataUse = Literal["ignore", "first", "only"]
"""Whether the prompt that a picture carries counts: not at all, before the model's, or alone."""

# Each file under captioner/models/ that has an entry in the zoo offers:
#     load(folder: Path, options: LoadOptions) -> Speaker | ImageEmbedder
# where `folder` holds a checkpoint (config.json whose "model_type" names the architecture, *.safetensors, processor
# files); a Hub id has already been resolved to its folder by the zoo. A model made of models (`zoo.COMPOSED`) is handed
# the way to load them: load(folder, options, load_other: LoadOther).
# A speaking architecture may also name its own search settings: DEFAULT_DECODING = {"num_beams": 5, …}, fields of
# `Decoding` plus "consensus"; a checkpoint's decoding.json goes over them.
LoadOther = Callable[[str], Model]
"""A model by name, loaded with the options of the one that it is a part of."""
