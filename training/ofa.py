"""Fine-tune OFA: it is asked about the picture and learns to answer with the prompt.

    python -m training.ofa --data my-pictures --out runs/ofa --base OFA-Sys/ofa-tiny
    python -m training.ofa --data my-pictures --out runs/ofa-lora --lora
    captioner generate --model runs/ofa new.png

The published scores used OFA as it is, without tuning (0.4264 as a public notebook). Defaults are those of BLIP.
"""

from __future__ import annotations

from dataclasses import dataclass

from captioner.run import lastresort
from training.recipe import LoraRecipe, changed, option, parse

ADAPTABLE = r"(encoder|decoder)\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass
class OFARecipe(LoraRecipe):
    batch_size: int = changed("batch_size", 4)
    base: str = option("ofa", "What to start from: a name of `captioner models`, a folder or a Hub id")
    question: str = option("", "What the picture is asked; left out: 'what does the image describe?'")
    freeze: str = option("none", "What does not learn", choices=["none", "encoder", "decoder"])


def main(argv: list[str] | None = None) -> None:
    recipe = parse(OFARecipe, __doc__, argv)
    # Imported only now: a wrong option is told at once.
    from captioner.models.ofa import OFA, check_form, positions, processor_for
    from captioner.models.parts import checkpoint
    from captioner.models.parts.speaker import SearchedDecoder
    from training.adapters import adapted, keep_training_after_evaluation, quantization
    from training.bases import resolved
    from training.captioners import fit, load_rows
    from training.freezing import freeze

    rows = load_rows(recipe)
    folder = resolved(recipe.base)
    check_form(folder)
    model = checkpoint.read_model(OFA, folder, quantization_config=quantization(recipe))
    keep_training_after_evaluation(model, recipe)
    processor = processor_for(model, folder, recipe.question or None)
    if recipe.freeze == "encoder":
        freeze(model.encoder, blocks=model.encoder.layers, but_last=recipe.unfreeze)
    elif recipe.freeze == "decoder":
        freeze(model.decoder, blocks=model.decoder.layers, but_last=recipe.unfreeze)
    frozen = recipe.freeze if recipe.freeze != "none" else None
    learning = adapted(model, recipe, ADAPTABLE, base=recipe.base, frozen=frozen)
    speaker = SearchedDecoder(model, processor, positions(model.config))
    fit(recipe, rows, speaker, learning, encoder=model.encoder, base=recipe.base)


if __name__ == "__main__":
    lastresort.run("python -m training.ofa", main)
