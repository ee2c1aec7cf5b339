"""Train a direct model: picture → backbone → head → the prompt's MiniLM embedding. No text.

    python -m training.direct --data my-pictures --out runs/vit --backbone vit --head mlp3
    python -m training.direct --data my-pictures --out runs/clip --backbone clip --freeze backbone --unfreeze 4
    python -m training.direct --data my-pictures --out runs/clip-lora --backbone clip --lora
    python -m training.direct --data my-pictures --out runs/small --backbone efficientnet-lite2 --pool statistics \\
        --head residual --freeze backbone --cache-features features --by-prompt
    captioner embed --model runs/vit new.png

Published recipe (defaults): ViT-B/16, 90/10 split, AdamW 1e-4, cosine annealing, cosine loss, batch 64, three epochs:
a test cosine of 0.5364 with a plain head. ResNet-152 was published with --freeze backbone --head tanh --lr 1e-3.
--lora is for vit, vit-large and clip: every block of the tower gets an adapter, and the head learns whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from captioner.errors import BadInput
from captioner.run import lastresort
from training.recipe import BACKBONES, LoraRecipe, changed, option, parse, refuse_options

HEADS = ["bn", "linear", "mlp3", "residual", "tanh"]
"""As in captioner/models/direct.py, which imports torch."""
ADAPTABLE_BACKBONES = ("vit", "vit-large", "clip")
ADAPTABLE = r"backbone\.tower\..*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2)"


@dataclass
class DirectRecipe(LoraRecipe):
    epochs: float = changed("epochs", 3.0)
    batch_size: int = changed("batch_size", 64)
    stream: bool = changed("stream", hidden=True)
    max_tokens: int = changed("max_tokens", hidden=True)
    samples: int = changed("samples", 0, hidden=True)
    qlora: str = changed("qlora", hidden=True)
    select_by: str = option("loss", "Which checkpoint is the best; the loss is 1 - cosine", choices=["loss"])
    backbone: str = option("vit", "The image tower", choices=BACKBONES)
    weights: str = option("", "Folder or Hub id of the tower's weights; left out: the usual ones")
    pool: str = option("", "efficientnet-lite0, 1, 2: statistics adds those of every stage", choices=["", "statistics"])
    head: str = option("mlp3", "From the tower's width to 384", choices=HEADS)
    freeze: str = option("none", "backbone: the head (and --unfreeze N blocks) learns", choices=["none", "backbone"])
    layer_decay: float = option(
        1.0, "Each block learns at this share of the rate of the block above it", above=0, most=1
    )
    embedder: str = option("all-MiniLM-L6-v2", "Whose text embeddings are the targets")


def main(argv: list[str] | None = None) -> None:
    recipe = parse(DirectRecipe, __doc__, argv)
    check_adapter(recipe)
    refuse_options(recipe, ["samples", "max_tokens"], "a direct model writes no text.")
    if recipe.freeze == "backbone" and not recipe.unfreeze:
        refuse_options(
            recipe, ["layer_decay", "gradient_checkpointing"], "no block of the backbone learns. Add --unfreeze N."
        )
    if recipe.stream:
        raise BadInput("The prompts are embedded before training: leave out --stream.")
    # Imported only now: a wrong option is told at once.
    from captioner.models.direct import DirectModel
    from training.adapters import BESIDE, adapted
    from training.bases import tower
    from training.captioners import Inputs, load_rows
    from training.freezing import thaw
    from training.job import Job
    from training.loop import train
    from training.vectors import Vectors, layer_wise, pooled

    train_rows, validation_rows = load_rows(recipe)
    settings = {"pool": recipe.pool} if recipe.pool else {}
    model = DirectModel.on(tower(recipe.backbone, recipe.weights, **settings), head=recipe.head)
    thaw(model.backbone, recipe.unfreeze if recipe.freeze == "backbone" else None)
    targets = Vectors([*train_rows["text"], *validation_rows["text"]], recipe.embedder)
    if recipe.head == "residual":
        mean = targets(sorted(set(train_rows["text"])))["labels"].mean(0)
        *_, last_layer = model.head.children()
        last_layer.get_parameter("bias").data.copy_(mean)
    # The adapter needs a base to stand on, and the head is fresh: tower and head are kept beside it.
    save_base = partial(model.save_pretrained, state_dict=model.state_dict())  # as it is before an adapter changes it
    learning = adapted(model, recipe, ADAPTABLE, base=BESIDE, whole=["head"])
    inputs = Inputs(
        recipe,
        pixels=model.backbone.preprocess,
        encoder=model.backbone,
        encode=partial(pooled, model.backbone),
        form="pooled" + recipe.pool,
    )
    train(
        Job(
            recipe=recipe,
            model=learning,
            train_rows=inputs.to_train_on(train_rows),
            validation_rows=inputs.to_validate_on(validation_rows),
            targets=targets,
            save_processor=lambda folder: None,  # the preprocessing is part of the model's config
            verb="embed",
            parameter_groups=layer_wise(model, recipe.lr, recipe.layer_decay),
            save_base=save_base if recipe.lora else None,
        )
    )


def check_adapter(recipe: DirectRecipe) -> None:
    """What does not go with an adapter is said before anything is loaded."""
    if recipe.qlora:
        raise BadInput("--qlora is for BLIP and OFA. The small towers here learn with --lora.")
    if recipe.lora and recipe.backbone not in ADAPTABLE_BACKBONES:
        raise BadInput(f"--lora is for vit, vit-large and clip: {recipe.backbone} is convolutional. Leave it out.")
    if recipe.lora and recipe.freeze == "backbone":
        raise BadInput("--lora adapts the tower, which --freeze backbone keeps as it is: leave one of them out.")
    if recipe.lora and recipe.cache_features:
        raise BadInput("--lora adapts every block of the tower: leave out --cache-features.")


if __name__ == "__main__":
    lastresort.run("python -m training.direct", main)
