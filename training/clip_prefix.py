"""Train a prefix captioner: image embedding → mapper → prefix → GPT-2.

    python -m training.clip_prefix --data my-pictures --out runs/prefix
    python -m training.clip_prefix --data my-pictures --out runs/prefix --unfreeze 2 --cache-features runs/clip-features
    captioner generate --model runs/prefix new.png

Published recipe (defaults): frozen CLIP ViT-B/32, only the mapper learns (or mapper and the last two blocks of GPT-2:
--unfreeze 2), AdamW 1e-4, linear schedule with 10 % warm-up, batch 64, 30 epochs. The image tower never learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import BadInput
from captioner.run import lastresort
from training.recipe import BACKBONES, LoraRecipe, changed, option, parse

if TYPE_CHECKING:
    from captioner.models.prefix.clip_prefix import ClipPrefix, PrefixProcessor

ADAPTABLE = r"gpt\.transformer\.h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))"


@dataclass
class ClipPrefixRecipe(LoraRecipe):
    epochs: float = changed("epochs", 30.0)
    batch_size: int = changed("batch_size", 64)
    schedule: str = changed("schedule", "linear")
    qlora: str = changed("qlora", hidden=True)
    backbone: str = option("clip", "The frozen image tower", choices=BACKBONES)
    weights: str = option("", "Folder or Hub id of the tower's weights; left out: the usual ones")
    language_model: str = option("openai-community/gpt2", "Folder or Hub id of the GPT-2")
    freeze: str = option("gpt2", "gpt2: only the mapper (and --unfreeze N blocks) learns", choices=["gpt2", "none"])
    mapper: str = option("transformer", "Its form", choices=["transformer", "mlp"])
    prefix_length: int = option(10, "How many words the picture stands for", least=1)
    normalize: bool = option(False, "Image embeddings of length 1")


def main(argv: list[str] | None = None) -> None:
    recipe = parse(ClipPrefixRecipe, __doc__, argv)
    if recipe.qlora:
        raise BadInput("--qlora is for BLIP and OFA. The small GPT-2 here learns with --lora.")
    # Imported only now: a wrong option is told at once.
    from captioner.models.parts.speaker import SearchedDecoder
    from training.adapters import BESIDE, adapted
    from training.captioners import fit, load_rows
    from training.freezing import freeze

    rows = load_rows(recipe)
    model, processor = new(recipe)
    model.backbone.thaw(0)
    if recipe.freeze == "gpt2":
        freeze(model.gpt, blocks=model.gpt.transformer.h, but_last=recipe.unfreeze)

    # The adapter needs a base to stand on, and the mapper is fresh: both are kept beside it, as they are now.
    weights = model.state_dict()

    def save_base(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)

    learning = adapted(model, recipe, ADAPTABLE, base=BESIDE, whole=["mapper"])
    speaker = SearchedDecoder(model, processor, model.gpt.config.n_positions - recipe.prefix_length)
    fit(recipe, rows, speaker, learning, encoder=model.backbone, save_base=save_base if recipe.lora else None)


def new(recipe: ClipPrefixRecipe) -> tuple[ClipPrefix, PrefixProcessor]:
    """A fresh mapper between a pretrained image tower and a pretrained GPT-2."""
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

    from captioner.models.parts import checkpoint
    from captioner.models.prefix.clip_prefix import ClipPrefix, ClipPrefixConfig, PrefixProcessor
    from training.bases import language_model, tower

    backbone = tower(recipe.backbone, recipe.weights)
    folder = language_model(recipe.language_model)
    with checkpoint.reading(folder):
        gpt2 = GPT2LMHeadModel.from_pretrained(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if recipe.prefix_length + 2 > (most := gpt2.config.n_positions):
        raise BadInput(f"--prefix-length {recipe.prefix_length}: the language model reads {most} words in all.")
    end = gpt2.config.eos_token_id
    if not isinstance(end, int):
        raise BadInput(f"The language model in {folder} ends a text with {end!r}: it needs one eos_token_id.")
    config = ClipPrefixConfig(
        backbone=backbone.config,
        joint_dim=backbone.width,
        normalize=recipe.normalize,
        mapper=recipe.mapper,
        prefix_length=recipe.prefix_length,
        clip_length=recipe.prefix_length,
        gpt2=gpt2.config.to_diff_dict(),
        eos_ids=[end],
        pad_id=end,
    )
    model = ClipPrefix(config)
    model.backbone, model.gpt = backbone, gpt2
    return model, PrefixProcessor(backbone.preprocess, tokenizer, config)


if __name__ == "__main__":
    lastresort.run("python -m training.clip_prefix", main)
