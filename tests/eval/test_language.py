"""BERTScore and perplexity with tiny random checkpoints in the real format, against the definitions."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from captioner.errors import BadCheckpoint
from eval.language import BertScore, Perplexity

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "a", "red", "fox", "blue", "owl", "in", "snow"]


def tokenizer(special: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    if special:
        made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="[UNK]")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=12, **size)).save_pretrained(folder)
    tokenizer(special=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=4)
    ).save_pretrained(folder)
    tokenizer(special=False).save_pretrained(folder)
    return folder


def test_bert_score_is_its_definition(encoder: Path) -> None:
    predicted, true = ["a red fox", "blue owl in snow", ""], ["a fox in snow", "blue owl in snow", "a fox"]
    scores = BertScore(str(encoder)).scores(predicted, true)
    model, words = BertModel.from_pretrained(encoder).eval(), tokenizer(special=True)

    def tokens(text: str) -> torch.Tensor:
        """With the special tokens: they can be matched."""
        with torch.no_grad():
            hidden = model(**words(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    alike = tokens(predicted[0]) @ tokens(true[0]).T
    precision, recall = float(alike.max(1).values[1:-1].mean()), float(alike.max(0).values[1:-1].mean())
    by_hand = [precision, recall, 2 * precision * recall / (precision + recall)]
    np.testing.assert_allclose(scores, [by_hand, [1, 1, 1], [0, 0, 0]], atol=1e-5)
    assert scores[0, 2] < 0.999


def test_bert_score_does_not_depend_on_the_batch(encoder: Path) -> None:
    score = BertScore(str(encoder))
    many = [f"a {word}" for word in WORDS[5:]] + ["red fox in blue snow a owl"]
    together = score.f1(many, list(reversed(many)))
    alone = [score.f1([a], [b])[0] for a, b in zip(many, reversed(many), strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_long_texts_are_cut(encoder: Path, language_model: Path) -> None:
    assert np.isfinite(BertScore(str(encoder)).f1(["a red fox " * 20], ["a fox"])).all()
    assert np.isfinite(Perplexity(str(language_model)).of(["a red fox " * 20])).all()


def test_perplexity_is_its_definition(language_model: Path) -> None:
    texts = ["a red fox", "owl", "", "in snow a blue owl"]
    values = Perplexity(str(language_model)).of(texts)
    model, words = GPT2LMHeadModel.from_pretrained(language_model).eval(), tokenizer(special=False)
    for text, value in zip(texts, values, strict=True):
        if not text:
            assert math.isnan(value)
            continue
        ids = torch.tensor([[4, *words(text).input_ids]])
        with torch.no_grad():
            assert value == pytest.approx(float(model(ids, labels=ids).loss.exp()), rel=1e-4)


def test_what_is_no_language_model_is_refused(encoder: Path, language_model: Path, tiny_checkpoint) -> None:
    with pytest.raises(BadCheckpoint):
        Perplexity(str(tiny_checkpoint("clip")))
    with pytest.raises(BadCheckpoint):
        BertScore(str(language_model.parent))
    with pytest.raises(BadCheckpoint, match="'clip' model: BERTScore needs a text encoder"):
        BertScore(str(tiny_checkpoint("clip")))


def test_half_an_encoder_decoder_is_no_encoder(encoder: Path, tmp_path: Path) -> None:
    """Without a text to write it computes nothing, which would be seen after every model was asked."""
    shutil.copytree(encoder, tmp_path / "t5")
    T5Model(T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    with pytest.raises(BadCheckpoint, match="'t5' model"):
        BertScore(str(tmp_path / "t5"))
