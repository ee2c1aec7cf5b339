"""ResNet → soft attention over the regions → LSTM: the classic captioner, with its own vocabulary.

The regions are projected once per image and shared among beams; a hypothesis carries the LSTM's two vectors alone.
Any backbone with a grid will do: `config.backbone` is what `Backbone.config` said. Xu et al. 2015, arXiv:1502.03044.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput
from captioner.models.parts import checkpoint
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.backbones.towers import Backbone
from captioner.models.parts.loss import token_loss
from captioner.models.parts.narrow import narrowed
from captioner.models.parts.speaker import SearchedDecoder

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
MOST_TOKENS = 1024
"""Of a text: no position ends an LSTM's, but it is taken to write no longer ones than GPT-2."""


class ResNetLSTMConfig(PreTrainedConfig):
    """Sizes of the decoder, and the backbone as `Backbone.config` gives it."""

    model_type = "resnet-lstm"

    backbone: dict | None = None
    vocab_size: int = 8000
    embedding_size: int = 256
    hidden_size: int = 512
    attention_size: int = 256
    dropout: float = 0.3
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    unknown_token_id: int | None = None
    """Of a word vocabulary: read as input, never written."""


@dataclass
class Regions:
    """What the LSTM looks at: one row per image."""

    values: Tensor  # [images, regions, hidden]
    keys: Tensor  # [images, regions, attention]

    def __len__(self) -> int:
        return len(self.values)

    def select(self, images: Tensor) -> Regions:
        return Regions(self.values[images], self.keys[images])


@dataclass
class LSTMState:
    """What the LSTM keeps of the text: one row per hypothesis."""

    hidden: Tensor  # [rows, hidden]
    cell: Tensor  # [rows, hidden]

    def select(self, rows: Tensor) -> LSTMState:
        return LSTMState(self.hidden[rows], self.cell[rows])


class ResNetLSTM(PreTrainedModel):
    """An image backbone and an LSTM that looks at its regions before every token."""

    config_class = ResNetLSTMConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ResNetLSTMConfig) -> None:
        super().__init__(config)
        word, hidden, attention = config.embedding_size, config.hidden_size, config.attention_size
        self.backbone = backbones.from_config(narrowed(config.backbone, dict))
        self.norm = nn.LayerNorm(self.backbone.grid_width)  # backbones differ in scale by orders of magnitude
        self.project = nn.Linear(self.backbone.grid_width, hidden)
        self.key = nn.Linear(hidden, attention)
        self.query = nn.Linear(hidden, attention, bias=False)
        self.relevance = nn.Linear(attention, 1, bias=False)
        self.gate = nn.Linear(hidden, hidden)
        self.first_hidden = nn.Linear(hidden, hidden)
        self.first_cell = nn.Linear(hidden, hidden)
        self.words = nn.Embedding(config.vocab_size, word)  # reads and, transposed, writes
        nn.init.normal_(self.words.weight, std=word**-0.5)
        self.lstm = nn.LSTMCell(word + hidden, hidden)
        self.mix = nn.Linear(word + 2 * hidden, word)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself; from transformers' small numbers the LSTM learns nothing."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels → regions `[n, regions, grid_width]`."""
        return self.backbone.grid(pixels)

    def remember(self, features: Tensor) -> Regions:
        """Regions projected to what the LSTM adds up and to what it compares with."""
        values = self.project(self.norm(features.to(self.norm.weight.dtype)))
        return Regions(values, self.key(values))

    def read(self, pixels: Tensor) -> Regions:
        """Pixels → memory."""
        return self.remember(self.encode(pixels))

    def step(self, tokens: Tensor, memory: Regions, past: LSTMState | None) -> tuple[Tensor, LSTMState]:
        """Read more text: logits after the last token `[rows, vocabulary]`, and the LSTM's state."""
        state = past or self._start(memory, len(tokens) // len(memory))
        for token in tokens.unbind(1):
            output, state, _ = self._advance(token, memory, state)
        return self._logits(output), state

    def forward(
        self,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        """Teacher forcing. Padding stands at the end, so that the labels alone mask it."""
        memory = self.read(narrowed(pixel_values, Tensor)) if features is None else self.remember(features)
        state = self._start(memory, 1)
        outputs = []
        for token in narrowed(input_ids, Tensor).unbind(1):
            output, state, _ = self._advance(token, memory, state)
            outputs.append(output)
        logits = self._logits(torch.stack(outputs, 1))  # [B, T, vocabulary]
        loss = None
        if labels is not None:
            if self.config.unknown_token_id is not None:
                labels = labels.masked_fill(labels == self.config.unknown_token_id, -100)
            loss = token_loss(logits[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def look(self, pixels: Tensor, ids: Sequence[int]) -> Tensor:
        """Where in one picture `[1, 3, h, w]` the model looks to write what follows each id: `[ids, rows, columns]`."""
        memory = self.read(pixels)
        state, maps = self._start(memory, 1), []
        for token in ids:
            _, state, weights = self._advance(torch.tensor([token], device=self.device), memory, state)
            maps.append(weights.flatten())
        side = math.isqrt(memory.values.shape[1])
        return torch.stack(maps).view(-1, side, side)

    def _start(self, memory: Regions, beams: int) -> LSTMState:
        """Before any word, the state comes from the mean region."""
        mean = memory.values.mean(1).repeat_interleave(beams, 0)  # [rows, hidden]
        return LSTMState(self.first_hidden(mean).tanh(), self.first_cell(mean).tanh())

    def _advance(self, token: Tensor, memory: Regions, state: LSTMState) -> tuple[Tensor, LSTMState, Tensor]:
        """One token of every row: what to predict from `[rows, word]`, the new state, the attention."""
        images, regions, width = memory.values.shape
        query = self.query(state.hidden).view(images, -1, 1, self.config.attention_size)  # [images, beams, 1, a]
        scores = self.relevance((memory.keys[:, None] + query).tanh()).squeeze(-1)
        weights = scores.softmax(-1)  # [images, beams, regions]
        seen = (weights @ memory.values).view(-1, width)  # [rows, hidden]
        seen = self.gate(state.hidden).sigmoid() * seen  # how much the picture matters now
        word = self.dropout(self.words(token))
        hidden, cell = self.lstm(torch.cat((word, seen), -1), (state.hidden, state.cell))
        output = self.mix(self.dropout(torch.cat((word, hidden, seen), -1))).tanh()
        return output, LSTMState(hidden, cell), weights.view(-1, regions)

    def _logits(self, output: Tensor) -> Tensor:
        logits = F.linear(output, self.words.weight, self.bias)
        if self.config.unknown_token_id is not None:
            logits[..., self.config.unknown_token_id] = torch.finfo(logits.dtype).min
        return logits


class VocabularyProcessor:
    """Pictures to pixels as the backbone wants them; text by the model's own vocabulary."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "<end>" within a prompt is text
        ids = [tokenizer.token_to_id(token) for token in (PAD, START, END)]
        if None in ids:
            raise BadCheckpoint(f"The vocabulary lacks {PAD}, {START} or {END}. Copy the one saved with the model.")
        self.pad_id, start, end = (narrowed(number, int) for number in ids)
        self.start_ids = [start]
        self.eos_ids: tuple[int, ...] = (end,)

    def encode(self, text: str) -> list[int]:
        """Text → ids without any special token."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """tokenizer.json; the preprocessing is part of the model's config."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))


def build_vocabulary(texts: Iterable[str], kind: str = "bpe", size: int = 8000) -> Tokenizer:
    """A vocabulary from the training prompts: "bpe" (byte pairs, writes anything) or "word" (the most frequent words,
    in lower case). In both a token carries the space before it, so that decoding gives the spacing back."""
    tidy = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    special = [PAD, START, END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(special) + {"bpe": len(alphabet), "word": 2}.get(kind, 0)  # an unknown word, and one that is known
    if size < least:
        raise BadInput(f"A vocabulary of kind {kind!r} has at least {least} entries: {size} are too few.")
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([*tidy, normalizers.Lowercase(), normalizers.Prepend(" ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w ]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        trainer: trainers.Trainer = trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=[*special, UNKNOWN], show_progress=False
        )
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(tidy)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        raise BadInput(f"A vocabulary is of kind bpe or word, not {kind!r}.")
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new(backbone: Backbone, tokenizer: Tokenizer, **sizes) -> tuple[ResNetLSTM, VocabularyProcessor]:
    """An untrained model around a (pretrained) backbone. sizes: fields of `ResNetLSTMConfig`."""
    processor = VocabularyProcessor(backbone.preprocess, tokenizer)
    config = ResNetLSTMConfig(
        backbone=backbone.config,
        vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=processor.pad_id,
        bos_token_id=processor.start_ids[0],
        eos_token_id=processor.eos_ids[0],
        unknown_token_id=tokenizer.token_to_id(UNKNOWN),
        **sizes,
    )
    model = ResNetLSTM(config)
    model.backbone = backbone
    return model, processor


def load(folder: Path, options: LoadOptions) -> SearchedDecoder:
    """A trained checkpoint, ready to speak."""
    model = checkpoint.load_pretrained(ResNetLSTM, folder, options)
    vocabulary = checkpoint.folder_with(folder, "tokenizer.json") / "tokenizer.json"
    with checkpoint.reading(vocabulary):
        tokenizer = Tokenizer.from_file(str(vocabulary))
    if tokenizer.get_vocab_size() != model.config.vocab_size:
        raise BadCheckpoint(
            f"{vocabulary} has {tokenizer.get_vocab_size()} tokens, the model {model.config.vocab_size}. "
            "Copy the tokenizer.json that was saved with the model."
        )
    processor = VocabularyProcessor(model.backbone.preprocess, tokenizer)
    special = (*processor.start_ids, *processor.eos_ids, processor.pad_id, model.config.unknown_token_id)
    checkpoint.check_ids(folder, model.config.vocab_size, (*special, max(tokenizer.get_vocab().values())))
    return SearchedDecoder(model, processor, MOST_TOKENS)
