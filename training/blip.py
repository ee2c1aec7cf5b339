"""Fine-tune BLIP on your own pairs of pictures and prompts.

    python -m training.blip --data my-pictures --out runs/blip
    python -m training.blip --data my-pictures --out runs/blip-lora --lora
    captioner generate --model runs/blip-lora new.png

Published recipe (defaults): about 5 % of DiffusionDB-2M, one epoch, batch 4, rate 1e-4, cosine annealing. Its authors
reached a cosine of 0.639 on their own small test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from captioner.run import lastresort
from training.recipe import LoraRecipe, changed, option, parse

if TYPE_CHECKING:
    from datasets import Dataset

    from training.captioners import Rows
    from training.job import Job

ADAPTABLE = r"(vision_model.*\.(qkv|projection|fc1|fc2))|(text_decoder\.bert.*\.(query|key|value|dense))"


@dataclass
class BlipRecipe(LoraRecipe):
    batch_size: int = changed("batch_size", 4)
    max_tokens: int = changed("max_tokens", 40)
    base: str = option("blip", "What to start from: a name of `captioner models`, a folder or a Hub id")
    prompt: str = option("", "What every caption begins with, e.g. 'a picture of'; no loss is taken on it")
    freeze: str = option("none", "What does not learn", choices=["none", "vision", "text"])


def main(argv: list[str] | None = None) -> None:
    recipe = parse(BlipRecipe, __doc__, argv)
    # Imported only now: a wrong option is told at once.
    from training.captioners import load_rows
    from training.loop import train

    train(job(recipe, load_rows(recipe)))


def job(recipe: BlipRecipe, rows: tuple[Rows, Dataset]) -> Job:
    """The model that learns, and what it learns from."""
    from captioner.models.blip import Blip, BlipProcessor, fuse_attention, text_config
    from captioner.models.parts import checkpoint
    from captioner.models.parts.speaker import SearchedDecoder
    from training.adapters import adapted, keep_training_after_evaluation, quantization
    from training.bases import resolved
    from training.captioners import job_of
    from training.freezing import freeze

    folder = resolved(recipe.base)
    model = checkpoint.read_model(Blip, folder, quantization_config=quantization(recipe))
    fuse_attention(model)
    keep_training_after_evaluation(model, recipe)
    processor = SearchedDecoder(model, BlipProcessor.from_folder(folder)).beginning(recipe.prompt)
    speaker = SearchedDecoder(model, processor, text_config(model.config).max_position_embeddings)
    if recipe.freeze == "vision":
        freeze(model.vision_model, blocks=model.vision_model.encoder.layers, but_last=recipe.unfreeze)
    elif recipe.freeze == "text":
        freeze(model.text_decoder, blocks=model.text_decoder.bert.encoder.layer, but_last=recipe.unfreeze)
    frozen = {"vision": "vision_model", "text": "text_decoder"}.get(recipe.freeze)
    learning = adapted(model, recipe, ADAPTABLE, base=recipe.base, frozen=frozen)
    return job_of(recipe, rows, speaker, learning, encoder=model.vision_model, base=recipe.base)


if __name__ == "__main__":
    lastresort.run("python -m training.blip", main)
