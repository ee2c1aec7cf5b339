"""Stage `reward`: the decoder learns from its own texts, those nearer to what is known the more (REINFORCE).

A text is read as its embedding. What counts is not how likely the decoder finds the true prompt, but how near the texts
come that it writes for a blurred guess. Such a guess is all that is known of the prompt, and on the mean of many the
truth lies where the guess does: so the reward is mostly the cosine to the guess, which has no noise, and less that to
the true prompt. Each text is compared with the others of the same guess. A little of the old task is kept in the mix,
so that the decoder goes on to write as people do.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.decoding import Decoding
from captioner.models.prefix.clip_prefix import ClipPrefix
from captioner.models.prefix.layers import PrefixProcessor
from captioner.text import clean
from captioner.text.embedding import TextEmbedder
from training.mini.export import MAX_NEW_TOKENS, Trial, assembled, head_of, one_each
from training.mini.features import quick_embedder
from training.mini.head import importance
from training.mini.language import BATCH, LONGEST, Blur, batches, load_texts, resume, save_checkpoint
from training.mini.quick import Quick, surprise
from training.mini.split import REBUILT, Pairs, load_pairs

GUESSES, TEXTS_EACH = 24, 6
"""A step's blurred guesses, half of them of pictures, and the texts written for each."""
TEMPERATURE = 0.8
"""How texts are drawn."""
GAINED = ("true", "to the guess", "the nearest to it", "strange", "tokens")
"""Means that tell how it goes: of all texts, but for the nearest of each guess."""
CHECKED_BY = Decoding(
    do_sample=True, num_return_sequences=4, temperature=0.7, top_p=0.9, max_new_tokens=MAX_NEW_TOKENS, seed=0
)
CHECKED = 120
"""Validation prompts that are written for now and then."""
END, USUAL_LENGTH = 0, 14
OF_TRUTH, OF_MEAN, CHOSEN_OF = 0.6, 0.5, 4
"""A picture's truth beside the guess (their weights are together 2), and all of a guess beside one chosen of some."""
OF_STRANGE = 0.003
"""What a text costs for each nat by which the decoder as it was finds it less likely: without it the texts became
nearer to the guess, but lists of a few words that suit everything ("neon signs, cinematic lighting")."""
RATE, WARM_UP, AS_BEFORE, SPREAD = 4e-4, 20, 0.4, 0.1
"""AS_BEFORE: the weight of the loss of stage `language`. SPREAD: a usual deviation of a text's reward."""


def reward(data: Path, work: Path, seed: int, steps: int = 480) -> None:
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
    before = Quick(model).model.requires_grad_(False)
    first = resume(checkpoint, parts, optimizer)
    quick = Quick(model)
    since, smooth = time.time(), np.zeros(len(GAINED))
    for step, rows in zip(range(steps), tasks.order, strict=False):
        if step < first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1, max((steps - step) / (0.5 * steps), 0.02))
        loss, gained = policy_loss(quick.model, before, processor, embed, tasks.guesses(step), step)
        blurred, tokens = tasks.as_before(rows[: BATCH // 2], step)
        loss = loss + AS_BEFORE * surprise(quick.model, blurred, tokens).sum() / (tokens >= 0).sum()
        loss.backward()
        quick.give_gradients()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        quick.take_weights()
        smooth = gained if step == first else 0.95 * smooth + 0.05 * gained
        if (step + 1) % 10 == 0:
            pace = (time.time() - since) / (step + 1 - first)
            figures = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(GAINED, smooth, strict=True))
            print(f"step {step + 1} {figures}, {pace:.2f} s/step", flush=True)
        if (step + 1) % 25 == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, parts, optimizer, step + 1)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            of_unseen = pairs.embeddings[pairs.prompt[unseen]]
            trial = Trial(model, processor, embed, predicted, of_unseen, CHECKED_BY)
            checked, captions = trial.figures(CHECKED_BY.num_return_sequences)
            print(checked, *captions[:5], sep="\n  ", flush=True)


@dataclass
class Guesses:
    """What texts are written for. Every row is of one guess."""

    given: Tensor
    """Blurred embeddings."""
    truth: Tensor
    """The true ones."""
    wanted: Tensor
    """A text's reward is its product with this sum of both, whose weights add up to 2."""


class Tasks:
    """The inputs and targets of each step, drawn with the step's number as seed: a resumed run draws the same."""

    def __init__(self, pairs: Pairs, work: Path, processor: PrefixProcessor, seed: int) -> None:
        self.pairs, self.seed, self.blur = pairs, seed, Blur(work / "blur.npz")
        _, lines, self.embeddings = load_texts(work)
        self.ids = [[*processor.encode(line)[: LONGEST - 1], END] for line in lines]
        self.order = batches([len(row) for row in self.ids], [1] * len(self.ids), seed)
        self.of_pictures = torch.from_numpy(np.load(work / "guesses.npz")["guesses"]).float()
        self.pictures = np.flatnonzero(~pairs.validation[pairs.prompt] & ~np.isin(pairs.source, list(REBUILT)))

    def guesses(self, step: int) -> Guesses:
        """Half of them real ones of unseen pictures, the others as they may be of a prompt alone."""
        generator, weights = np.random.default_rng((self.seed, step)), importance(self.pairs).numpy()[self.pictures]
        pictures = generator.choice(self.pictures, GUESSES // 2, p=weights / weights.sum())
        texts = torch.from_numpy(self.embeddings[generator.choice(len(self.ids), GUESSES // 2)]).float()
        given = torch.cat((self.of_pictures[pictures], self.blur.whole(texts, self._generator(step))))
        truth = torch.cat((torch.from_numpy(self.pairs.embeddings[self.pairs.prompt[pictures]]), texts))
        of_truth = torch.tensor([[OF_TRUTH]] * len(pictures) + [[0.0]] * len(texts))
        return Guesses(given, truth, of_truth * truth + (2 - of_truth) * given)

    def as_before(self, rows: list[int], step: int) -> tuple[Tensor, Tensor]:
        """Blurred embeddings and tokens of these texts, as in stage `language`."""
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(self.ids[row]) for row in rows], True, -100)
        return self.blur(torch.from_numpy(self.embeddings[rows]).float(), self._generator(-step - 1)), tokens

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)


def policy_loss(
    model: ClipPrefix,
    before: ClipPrefix,
    processor: PrefixProcessor,
    embed: TextEmbedder,
    guesses: Guesses,
    seed: int,
) -> tuple[Tensor, np.ndarray]:
    """The REINFORCE loss: the negative log-likelihood of the texts just written, each weighted by its advantage. And
    what GAINED names. `before` is the decoder as it was: what it would not have written costs something."""
    tokens = draw(model, guesses.given, torch.Generator().manual_seed(seed))  # [guesses * TEXTS_EACH, length]
    vectors = torch.from_numpy(embed(written(tokens, processor))).unflatten(0, (-1, TEXTS_EACH))
    targets = guesses.truth, guesses.given, guesses.wanted
    near, to_guess, rewards = ((vectors @ target[:, :, None]).squeeze(-1) for target in targets)  # [guesses, texts]
    for_each = guesses.given.repeat_interleave(TEXTS_EACH, 0)
    of_texts = surprise(model, for_each, tokens, TEMPERATURE).sum(1)
    with torch.no_grad():
        strange = (surprise(before, for_each, tokens, TEMPERATURE).sum(1) - of_texts).view_as(near)
    advantage = advantages(rewards - OF_STRANGE * strange, to_guess).flatten() / (2 * SPREAD)
    nearest, length = to_guess.max(1).values, (tokens >= 0).sum(1).float()
    figures = [figure.mean().item() for figure in (near, to_guess, nearest, strange, length)]
    loss = (of_texts / USUAL_LENGTH * advantage).mean()  # not by its own length: long texts count as much
    return loss, np.array(figures)


def advantages(rewards: Tensor, to_guess: Tensor) -> Tensor:
    """How much a text adds: to the mean of its guess's texts, and to the one chosen of some. [guesses, texts]

    A caption is of several texts the nearest to the guess. So the second part is, over all choices of CHOSEN_OF - 1 of
    the other texts, the mean of what is won where this text is nearer than all of them: its reward without theirs.
    """
    count = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
    order = to_guess.argsort(1)
    ascending = rewards.gather(1, order)
    # The nearest of CHOSEN_OF - 1 texts is the k-th of those that lie farther in this share of the choices.
    ways = [math.comb(farther, CHOSEN_OF - 2) / math.comb(count - 1, CHOSEN_OF - 1) for farther in range(count)]
    won = (ascending[:, :, None] - ascending[:, None, :]).tril(-1) @ torch.tensor(ways).to(rewards)
    return OF_MEAN * (rewards - others) + torch.zeros_like(rewards).scatter(1, order, won)


@torch.no_grad()
def draw(model: ClipPrefix, given: Tensor, generator: torch.Generator) -> Tensor:
    """TEXTS_EACH texts for each guess, its end token included, -100 after it. [guesses * TEXTS_EACH, length]

    `search` draws the same way, but row by row, so that a batch changes no text: nothing that matters here.
    """
    memory = model.remember(given.to(model.dtype))
    past, logits = memory.begin(TEXTS_EACH), memory.first_logits.repeat_interleave(TEXTS_EACH, 0)
    tokens = torch.zeros(len(logits), 0, dtype=torch.long)
    ended = torch.zeros(len(logits), dtype=torch.bool)
    while True:
        sums = (logits.float() / TEMPERATURE).softmax(-1).cumsum(-1)  # torch.multinomial takes ten times as long
        drawn = torch.searchsorted(sums, torch.rand(len(sums), 1, generator=generator) * sums[:, -1:])
        drawn = drawn.clamp(max=sums.shape[1] - 1)
        tokens = torch.cat((tokens, drawn.masked_fill(ended[:, None], -100)), dim=1)
        ended |= drawn[:, 0] == END
        if tokens.shape[1] == MAX_NEW_TOKENS or ended.all():
            return tokens
        logits, past = model.step(drawn, memory, past)


def written(tokens: Tensor, processor: PrefixProcessor) -> list[str]:
    """The texts as a user gets them."""
    rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return [
        clean.clean(processor.decode([token for token in row if token != END]), finished=row[-1] == END) for row in rows
    ]
