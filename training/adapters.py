"""LoRA and QLoRA: train a small adapter beside frozen weights.

`captioner generate --model ADAPTER` uses an adapter folder as it is; `captioner merge ADAPTER OUT` writes whole
weights.
"""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import Linear
from transformers import BitsAndBytesConfig, PreTrainedModel

from captioner import zoo
from captioner.errors import BadInput
from captioner.files.names import path_of
from training.bases import hub_name
from training.recipe import LoraRecipe

BESIDE = "base"
"""The folder beside an adapter that holds its base, when that is fresh and has no other name."""


def adapted(
    model: PreTrainedModel,
    recipe: LoraRecipe,
    targets: str,
    base: str,
    whole: list[str] | None = None,
    frozen: str | None = None,
) -> PreTrainedModel | PeftModel:
    """The model with a LoRA adapter when the recipe asks for one; else the model.

    Args:
        targets: a regular expression over module names. Word embeddings and the output layer tied to them are never
            adapted: merging would change both at once.
        base: where the model is from, a name, a folder or BESIDE; the adapter names it as its base.
        whole: modules that learn as a whole and are saved with the adapter.
        frozen: the part that --freeze names; it gets no adapter.
    """
    if not (recipe.lora or recipe.qlora):
        return model
    if recipe.qlora:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0.05,
        target_modules=recipe.lora_targets or targets,
        exclude_modules=rf"{frozen}\..*" if frozen else None,
        modules_to_save=whole,
    )
    try:
        with warnings.catch_warnings():
            # It asks transformers' models by an old name, and tells that it treats GPT-2's layers as what they are.
            warnings.simplefilter("ignore")
            adapted_model = get_peft_model(model, config)
    except ValueError as error:  # peft's own class for it differs between versions
        if not recipe.lora_targets:
            raise
        layers = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, Linear)})
        raise BadInput(
            f"--lora-targets {' '.join(recipe.lora_targets)}: the model has no layers of these names. "
            f"It has {', '.join(layers)}."
        ) from error
    if recipe.precision != "fp32":
        for module in adapted_model.modules():
            if isinstance(module, LoraLayer):  # the products take halves: no need to make fp32 of them before
                module.cast_input_dtype_enabled = False
    adapted_model.peft_config["default"].base_model_name_or_path = name_of_base(base)
    return adapted_model


def without_adapter(model: nn.Module) -> nn.Module:
    """The model that an adapter wraps; without one, the model."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def name_of_base(base: str) -> str:
    """What an adapter names as its base, valid elsewhere too: the Hub id where there is one, else the folder."""
    if base == BESIDE or base in zoo.ENTRIES:
        return hub_name(base)
    folder = path_of(base)
    return str(folder.resolve()) if folder.exists() else base


def quantization(recipe: LoraRecipe) -> BitsAndBytesConfig | None:
    """How `from_pretrained` packs the frozen weights, where the recipe asks for 8 or 4 bits."""
    if recipe.qlora == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if recipe.qlora == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return None


def keep_training_after_evaluation(model: torch.nn.Module, recipe: LoraRecipe) -> None:
    """bitsandbytes repacks 4-bit weights for bf16 inference on CPUs at the first evaluation, and training then fails:
    forbid the repacking."""
    if recipe.qlora != "4bit":
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
