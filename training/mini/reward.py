"""Stage `reward`: the decoder learns from its own texts, those nearer to the true prompt the more (REINFORCE).

A text is read as its embedding. What counts is not how likely the decoder finds the true prompt, but how near the texts
come that it writes for a blurred guess. The reward is the cosine to the true prompt's embedding, and to the guess: its
error averages out over prompts. Each text is compared with the others of the same guess. A little of the old task is
kept in the mix, so that the decoder goes on to write as people do.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.decoding import Decoding
from captioner.models.prefix.clip_prefix import ClipPrefix
from captioner.models.prefix.layers import PrefixProcessor
from captioner.text import clean
from captioner.text.embedding import TextEmbedder
from training.mini.export import Trial, assembled, head_of, one_each
from training.mini.features import quick_embedder
from training.mini.head import importance
from training.mini.language import BATCH, LONGEST, Blur, batches, load_texts, resume, save_checkpoint
from training.mini.split import REBUILT, Pairs, load_pairs

GUESSES, TEXTS_EACH = 16, 8
"""A step's blurred guesses, half of them of pictures, and the texts written for each."""
TEMPERATURE, MOST = 0.8, 28
"""How texts are drawn, and their tokens at most."""
CHECKED_BY = Decoding(do_sample=True, num_return_sequences=4, temperature=0.7, top_p=0.9, max_new_tokens=28, seed=0)
CHECKED = 120
"""Validation prompts that are written for now and then."""
END, USUAL_LENGTH = 0, 14
RATE, WARM_UP, AS_BEFORE, SPREAD = 1.5e-4, 20, 0.3, 0.1
"""AS_BEFORE: the weight of the loss of stage `language`. SPREAD: a usual deviation of a text's reward."""


def reward(data: Path, work: Path, seed: int, steps: int = 500) -> None:
    """Stage `reward`: from language.pt to reward.pt; resumes from its last checkpoint."""
    model, processor = assembled(work, "head-without-validation.pt", "language.pt")
    pairs, embed = load_pairs(data, work), quick_embedder()
    tasks = Tasks(pairs, work, processor, seed)
    unseen = one_each(pairs, CHECKED)
    with torch.inference_mode():
        predicted = head_of(model)(torch.from_numpy(pairs.features[unseen]).float())
    parts = torch.nn.ModuleList([model.mapper, model.gpt])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint = work / "reward.pt"
    first = resume(checkpoint, parts, optimizer)
    since, smooth = time.time(), 0.0
    for step, rows in zip(range(steps), tasks.order, strict=False):
        if step < first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1, max((steps - step) / (0.5 * steps), 0.02))
        given, truth = tasks.guesses(step)
        loss, gained = policy_loss(model, processor, embed, given, truth, step)
        blurred, tokens = tasks.as_before(rows[: BATCH // 2], step)
        loss = loss + AS_BEFORE * model(features=blurred, input_ids=tokens.clamp(min=0), labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        smooth = gained if step == first else 0.95 * smooth + 0.05 * gained
        if (step + 1) % 10 == 0:
            pace = (time.time() - since) / (step + 1 - first)
            print(f"step {step + 1} reward {smooth:.4f} {pace:.2f} s/step", flush=True)
        if (step + 1) % 25 == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, parts, optimizer, step + 1)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            of_unseen = pairs.embeddings[pairs.prompt[unseen]]
            trial = Trial(model, processor, embed, predicted, of_unseen, CHECKED_BY)
            figures, captions = trial.figures(CHECKED_BY.num_return_sequences)
            print(figures, *captions[:5], sep="\n  ", flush=True)


class Tasks:
    """The inputs and targets of each step, drawn with the step's number as seed: a resumed run draws the same."""

    def __init__(self, pairs: Pairs, work: Path, processor: PrefixProcessor, seed: int) -> None:
        self.pairs, self.seed, self.blur = pairs, seed, Blur(work / "blur.npz")
        _, lines, self.embeddings = load_texts(work)
        self.ids = [[*processor.encode(line)[: LONGEST - 1], END] for line in lines]
        self.order = batches([len(row) for row in self.ids], [1] * len(self.ids), seed)
        self.of_pictures = torch.from_numpy(np.load(work / "guesses.npz")["guesses"]).float()
        self.pictures = np.flatnonzero(~pairs.validation[pairs.prompt] & ~np.isin(pairs.source, list(REBUILT)))

    def guesses(self, step: int) -> tuple[Tensor, Tensor]:
        """Blurred embeddings, half of them real guesses of unseen pictures, and the true ones. [GUESSES, 384] each"""
        generator, weights = np.random.default_rng((self.seed, step)), importance(self.pairs).numpy()[self.pictures]
        pictures = generator.choice(self.pictures, GUESSES // 2, p=weights / weights.sum())
        texts = torch.from_numpy(self.embeddings[generator.choice(len(self.ids), GUESSES // 2)]).float()
        given = torch.cat((self.of_pictures[pictures], self.blur.whole(texts, self._generator(step))))
        return given, torch.cat((torch.from_numpy(self.pairs.embeddings[self.pairs.prompt[pictures]]), texts))

    def as_before(self, rows: list[int], step: int) -> tuple[Tensor, Tensor]:
        """Blurred embeddings and tokens of these texts, as in stage `language`."""
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(self.ids[row]) for row in rows], True, -100)
        return self.blur(torch.from_numpy(self.embeddings[rows]).float(), self._generator(-step - 1)), tokens

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def policy_loss(
    model: ClipPrefix, processor: PrefixProcessor, embed: TextEmbedder, given: Tensor, truth: Tensor, seed: int
) -> tuple[Tensor, float]:
    """The REINFORCE loss, and the texts' mean cosine to the truth: the negative log-likelihood of the texts just
    written, each weighted by its advantage, its reward above the mean of the others of its guess."""
    tokens = draw(model.eval(), given, torch.Generator().manual_seed(seed))  # [guesses * TEXTS_EACH, length]
    vectors = torch.from_numpy(embed(written(tokens, processor))).unflatten(0, (len(given), TEXTS_EACH))
    near = (vectors @ truth[:, :, None]).squeeze(-1)  # [guesses, texts]
    rewards = near + (vectors @ given[:, :, None]).squeeze(-1)
    others = (rewards.sum(1, keepdim=True) - rewards) / (TEXTS_EACH - 1)
    advantage = ((rewards - others) / (2 * SPREAD)).flatten()
    prefix = model.prefix(given).repeat_interleave(TEXTS_EACH, 0)
    embedded = torch.cat((prefix, model.gpt.transformer.wte(tokens[:, :-1].clamp(min=0))), dim=1)
    hidden = model.gpt.transformer(inputs_embeds=embedded, use_cache=False)[0][:, prefix.shape[1] - 1 :]
    logits = model.gpt.lm_head(hidden) / TEMPERATURE
    of_tokens = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-100, reduction="none")
    of_texts = of_tokens.unflatten(0, tokens.shape).sum(1) / USUAL_LENGTH  # not its own: long texts count as much
    return (of_texts * advantage).mean(), near.mean().item()


@torch.no_grad()
def draw(model: ClipPrefix, given: Tensor, generator: torch.Generator) -> Tensor:
    """TEXTS_EACH texts for each guess, its end token included, -100 after it. [guesses * TEXTS_EACH, length]

    `search` draws the same way, but row by row, so that a batch changes no text: nothing that matters here.
    """
    memory = model.remember(given)
    past, logits = memory.begin(TEXTS_EACH), memory.first_logits.repeat_interleave(TEXTS_EACH, 0)
    tokens = torch.zeros(len(logits), 0, dtype=torch.long)
    ended = torch.zeros(len(logits), dtype=torch.bool)
    while tokens.shape[1] < MOST and not ended.all():
        drawn = torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, drawn.masked_fill(ended[:, None], -100)), dim=1)
        ended |= drawn[:, 0] == END
        logits, past = model.step(drawn, memory, past)
    return tokens


def written(tokens: Tensor, processor: PrefixProcessor) -> list[str]:
    """The texts as a user gets them."""
    rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return [
        clean.clean(processor.decode([token for token in row if token != END]), finished=row[-1] == END) for row in rows
    ]
