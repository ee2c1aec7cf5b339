"""Image towers: transformers' ViT, CLIP and ResNet, and EfficientNet-Lite, each with its preprocessing.

What they have in common is a `Backbone`: pixels to one vector, or to a grid of them, and layers that can be frozen.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from captioner.errors import BadCheckpoint
from captioner.models.parts.backbones.efficientnet_lite import EfficientNetLite
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.models.parts.checkpoint import (
    check,
    check_numbers,
    check_shape,
    config_class,
    reading,
    with_report,
)
from captioner.models.parts.narrow import all_of

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection, PreTrainedModel, ResNetModel, ViTModel


class Backbone(nn.Module):
    """An image tower. Subclasses say how it is called; `tower` holds its weights."""

    width: int
    """Length of a pooled vector."""
    grid_width: int
    """Length of a region's vector."""

    def __init__(self, name: str, preprocess: Preprocess, settings: dict, tower: nn.Module | None = None) -> None:
        """tower: with its weights; None: one with random weights."""
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.settings = settings
        self.tower = self.blank_tower(name, settings) if tower is None else tower
        self.width, self.grid_width = self.widths()

    @classmethod
    def blank_tower(cls, name: str, settings: dict) -> nn.Module:
        """A tower with random weights."""
        raise NotImplementedError

    def widths(self) -> tuple[int, int]:
        """`width` and `grid_width`."""
        raise NotImplementedError

    @property
    def config(self) -> dict:
        """All that `from_config` needs, ready for JSON."""
        return {"name": self.name, "settings": self.settings, "preprocess": self.preprocess.to_dict()}

    @property
    def stem(self) -> nn.Module:
        """What comes before the blocks."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers from the picture upwards, for freezing and for layer-wise learning rates."""
        raise NotImplementedError

    def pooled(self, pixels: Tensor) -> Tensor:
        """Pixels `[n, 3, size, size]` → one vector a picture `[n, width]`."""
        raise NotImplementedError

    def grid(self, pixels: Tensor) -> Tensor:
        """Pixels `[n, 3, size, size]` → regions, row by row `[n, regions, grid_width]`."""
        raise NotImplementedError

    def thaw(self, last: int | None) -> None:
        """Train only the last N blocks and what follows them; 0 freezes the backbone, None trains all of it."""
        self.requires_grad_(last is None or last > 0)
        if last is not None:
            for part in (self.stem, *self.blocks[: max(0, len(self.blocks) - last)]):
                part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Frozen layers stay as in inference: no dropout, and batch norms keep the statistics they learnt."""
        super().train(mode)
        for part in (self.stem, *self.blocks):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def fingerprint(self) -> str:
        """A hash of weights and preprocessing: equal exactly when the same picture gives the same features."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
        return digest.hexdigest()


class OfTransformers(Backbone):
    """A tower whose class is one of transformers'."""

    class_name: str
    options: ClassVar[dict[str, bool]] = {}
    """Of its constructor."""
    model_types: tuple[str, ...]
    """What a checkpoint's config.json may call itself."""

    @classmethod
    def tower_class(cls) -> type[PreTrainedModel]:
        """Imported now: an index on EfficientNet-Lite answers without transformers."""
        import transformers

        return getattr(transformers, cls.class_name)

    @classmethod
    def blank_tower(cls, name: str, settings: dict) -> nn.Module:
        kind = cls.tower_class()
        return kind(config_class(kind)(**settings), **cls.options)

    @classmethod
    def load_tower(cls, name: str, folder: Path) -> PreTrainedModel:
        """That of a checkpoint, whose other parts (text tower, classifier) are passed over."""
        kind, whole = cls.tower_class(), check(folder)
        if (model_type := whole.get("model_type")) not in cls.model_types:
            needed = " or ".join(cls.model_types)
            raise BadCheckpoint(f"{folder} holds a {model_type!r} model; the backbone {name!r} needs {needed}.")
        with reading(folder):
            config = config_class(kind).from_pretrained(folder)
            if (width := whole.get("projection_dim")) is not None and "projection_dim" in config.to_dict():
                config.projection_dim = width  # of the whole CLIP, which its towers' own parts need not repeat
            check_shape(lambda: kind(config, **cls.options), folder)
            tower, report = with_report(
                kind, folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, **cls.options
            )
        if report["missing_keys"]:
            raise BadCheckpoint(f"{folder} lacks weights, e.g. {sorted(report['missing_keys'])[0]!r}.")
        if misshapen := [key for key, *_shapes in report["mismatched_keys"]]:
            raise BadCheckpoint(
                f"{folder}/config.json describes another size of {sorted(misshapen)[0]!r}. Fetch it again."
            )
        check_numbers(tower, folder)
        return tower


class ViT(OfTransformers):
    """Vision transformer: pooled is its class token, the grid its patches, both after the last norm."""

    class_name, model_types = "ViTModel", ("vit",)
    options: ClassVar[dict[str, bool]] = {"add_pooling_layer": False}
    tower: ViTModel

    def widths(self) -> tuple[int, int]:
        return self.tower.config.hidden_size, self.tower.config.hidden_size

    @property
    def stem(self) -> nn.Module:
        return self.tower.embeddings

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.layers)

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state[:, 0]

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state[:, 1:]


class CLIPVision(OfTransformers):
    """CLIP's image tower: pooled is the embedding in CLIP's joint space, the grid the patches before the last norm."""

    class_name, model_types = "CLIPVisionModelWithProjection", ("clip", "clip_vision_model")
    tower: CLIPVisionModelWithProjection

    def widths(self) -> tuple[int, int]:
        return self.tower.config.projection_dim, self.tower.config.hidden_size

    @property
    def stem(self) -> nn.Module:
        return nn.ModuleList([self.tower.vision_model.embeddings, self.tower.vision_model.pre_layrnorm])

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.vision_model.encoder.layers)

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).image_embeds

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state[:, 1:]


class ResNet(OfTransformers):
    """Residual network without its classifier: pooled is the mean of the 7×7 map, the grid the map itself."""

    class_name, model_types = "ResNetModel", ("resnet",)
    tower: ResNetModel

    def widths(self) -> tuple[int, int]:
        width = list(self.tower.config.hidden_sizes or ())[-1]
        return width, width

    @property
    def stem(self) -> nn.Module:
        return self.tower.embedder

    @property
    def blocks(self) -> list[nn.Module]:
        from transformers.models.resnet.modeling_resnet import ResNetStage

        return [layer for stage in all_of(self.tower.encoder.stages, ResNetStage) for layer in stage.layers]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.grid(pixels).mean(1)

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)  # [n, regions, channels]


class Lite(Backbone):
    """EfficientNet-Lite: pooled is the mean of the last map; `pool="statistics"` adds every stage's statistics."""

    tower: EfficientNetLite

    def widths(self) -> tuple[int, int]:
        of_map = self.tower.head.out_channels
        return self.tower.statistics_width if self.settings.get("pool") == "statistics" else of_map, of_map

    @classmethod
    def blank_tower(cls, name: str, settings: dict) -> EfficientNetLite:
        return EfficientNetLite(name.removeprefix("efficientnet-"))

    @property
    def stem(self) -> nn.Module:
        return self.tower.stem

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.blocks)

    def pooled(self, pixels: Tensor) -> Tensor:
        if self.settings.get("pool") == "statistics":
            return self.tower.statistics(pixels)
        return self.grid(pixels).mean(1)

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).flatten(2).transpose(1, 2)  # [n, regions, channels]
