"""Train the classic captioner: ResNet-50 → attention → LSTM, or with --gpt2 ResNet-50 → LSTM → GPT-2.

    python -m training.resnet_lstm --data my-pictures --out runs/resnet-lstm
    python -m training.resnet_lstm --data my-pictures --out runs/resnet-lstm-gpt2 --gpt2 --augment
    captioner generate --model runs/resnet-lstm new.png

Published recipe (defaults): 5 % of DiffusionDB, five epochs, Adam at a constant 3e-4; a cosine of 0.27 on their data.
The GPT-2 form was published with augmentation, AdamW and a linear warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from captioner.errors import BadInput
from captioner.run import lastresort
from training.recipe import BACKBONES, Recipe, changed, option, parse, refuse_options


@dataclass
class ResNetLSTMRecipe(Recipe):
    epochs: float = changed("epochs", 5.0)
    batch_size: int = changed("batch_size", 32)
    lr: float = changed("lr", 3e-4)
    schedule: str = changed("schedule", "constant")
    warmup: float = changed("warmup", 0.0)
    weight_decay: float = changed("weight_decay", 0.0)
    backbone: str = option("resnet50", "The image tower", choices=BACKBONES)
    weights: str = option("", "Folder or Hub id of the tower's weights; left out: the usual ones")
    freeze: str = option("backbone", "backbone: --unfreeze N opens its last blocks", choices=["backbone", "none"])
    vocabulary: str = option("bpe", "Built from the prompts: byte pairs or words", choices=["bpe", "word"])
    vocabulary_size: int = option(8000, "Its size", least=1)
    hidden_size: int = option(512, "Width of the LSTM", least=1)
    gpt2: bool = option(False, "Let a GPT-2 write: ResNet → LSTM → GPT-2")
    language_model: str = option("openai-community/gpt2", "With --gpt2: folder or Hub id of the GPT-2")


def main(argv: list[str] | None = None) -> None:
    recipe = parse(ResNetLSTMRecipe, __doc__, argv)
    if recipe.stream and not recipe.gpt2:
        raise BadInput("The vocabulary is made of all prompts before training: leave out --stream, or take --gpt2.")
    if recipe.gpt2:
        refuse_options(
            recipe, ["vocabulary", "vocabulary_size", "hidden_size"], "GPT-2 has words and a width of its own."
        )
    else:
        refuse_options(recipe, ["language_model"], "add --gpt2.")
    # Imported only now: a wrong option is told at once.
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from captioner.models.lstm import attention_lstm, lstm_gpt2
    from captioner.models.parts import checkpoint
    from captioner.models.parts.speaker import SearchedDecoder
    from training.bases import language_model, tower
    from training.captioners import fit, load_rows
    from training.freezing import thaw

    rows = load_rows(recipe)
    backbone = tower(recipe.backbone, recipe.weights)
    unfreeze = recipe.unfreeze if recipe.freeze == "backbone" else None
    if recipe.gpt2:
        folder = language_model(recipe.language_model)
        with checkpoint.reading(folder):
            gpt2, tokenizer = GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        writer, gpt2_processor = lstm_gpt2.new(backbone, gpt2, tokenizer)
        thaw(backbone, unfreeze)
        fit(recipe, rows, SearchedDecoder(writer, gpt2_processor, gpt2.config.n_positions), writer, encoder=backbone)
        return
    vocabulary = attention_lstm.build_vocabulary(rows[0]["text"], recipe.vocabulary, recipe.vocabulary_size)
    model, processor = attention_lstm.new(backbone, vocabulary, hidden_size=recipe.hidden_size)
    thaw(backbone, unfreeze)
    unknown = model.config.unknown_token_id
    fit(recipe, rows, SearchedDecoder(model, processor), model, encoder=backbone, unknown=unknown)


if __name__ == "__main__":
    lastresort.run("python -m training.resnet_lstm", main)
