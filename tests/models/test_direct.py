"""Direct models: the published parameter counts and heads, the loss, saving and loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput
from captioner.models import direct
from captioner.models.direct import Direct, DirectConfig, DirectModel
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import Preprocess
from tests.tiny.direct import TOWER

TINY_TOWERS = {
    "vit": TOWER,
    "clip": {**TOWER, "projection_dim": 12},
    "resnet50": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]},
}


def tiny(name: str = "vit", **settings) -> DirectModel:
    torch.manual_seed(0)
    return DirectModel.on(backbones.blank(name, Preprocess(32), **TINY_TOWERS[name]), **settings)


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (40, 30 + i, 3), dtype=np.uint8)) for i in range(count)]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_heads_have_the_published_parameters():
    assert [parameters(layer) for layer in direct.head("mlp3", 768, 384, 0.1) if isinstance(layer, nn.Linear)] == [
        787_456,
        524_800,
        196_992,
    ]
    with torch.device("meta"):
        resnet = DirectModel(DirectConfig(backbone=backbones.blank("resnet50").config, head="bn"))
    assert parameters(resnet) == 24_755_136


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mlp3", "Linear Dropout GELU Linear Dropout GELU Linear"),
        ("bn", "Linear Normed ReLU Dropout Linear"),
        ("tanh", "Linear Tanh Dropout Linear"),
        ("linear", "Dropout Linear"),
    ],
)
def test_heads_are_made_of(name, layers):
    made = direct.head(name, 8, 384, 0.4)
    assert " ".join(type(layer).__name__ for layer in made) == layers
    assert all(layer.p == 0.4 for layer in made if isinstance(layer, nn.Dropout))


@pytest.mark.parametrize("name", ["bn", "residual"])
def test_a_last_batch_of_one_picture_is_learnt_from(name):
    made = direct.head(name, 8, 384, 0.0).train()
    made(torch.randn(4, 8))
    (norm,) = (layer for layer in made if isinstance(layer, torch.nn.BatchNorm1d))
    before = norm.running_mean.clone()
    one = torch.randn(1, 8)
    learning = made(one)
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(learning, made.eval()(one))


def test_the_tanh_head_drops_forty_per_cent():
    assert DirectConfig(head="tanh").dropout == 0.4
    assert DirectConfig(head="tanh", dropout=0.1).dropout == 0.1


def test_loss_is_one_minus_cosine_weighted():
    model = tiny().eval()
    pixels, weight = torch.randn(3, 3, 32, 32), torch.tensor([1.0, 0.0, 3.0])
    labels = F.normalize(torch.randn(3, 384), dim=-1)
    embeddings = model(pixel_values=pixels).embeddings
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    losses = 1 - (embeddings * labels).sum(-1)
    torch.testing.assert_close(model(pixels, labels=labels).loss, losses.mean())
    torch.testing.assert_close(model(pixels, labels=labels, weight=weight).loss, (losses * weight).sum() / 4)


def test_cached_features_give_what_pixels_give():
    model = tiny("resnet50", head="bn").eval()
    pixels = torch.randn(2, 3, 32, 32)
    features = model.backbone.pooled(pixels)
    torch.testing.assert_close(model(features=features).embeddings, model(pixel_values=pixels).embeddings)


def test_it_learns():
    model = tiny(head="mlp3")
    pixels, labels = torch.randn(6, 3, 32, 32), F.normalize(torch.randn(6, 384), dim=-1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]


def test_a_pretrained_backbone_keeps_its_weights():
    torch.manual_seed(5)
    backbone = backbones.blank("vit", Preprocess(32), **TOWER)
    before = backbone.fingerprint()
    assert DirectModel.on(backbone, head="linear").backbone.fingerprint() == before


def test_the_residual_head_begins_with_one_answer_for_all():
    model = tiny(head="residual").eval()
    model.head[-1].bias.data.normal_()
    answers = Direct(model).vectors(pictures(3))
    np.testing.assert_allclose(answers, model.head[-1].bias.detach().numpy()[None].repeat(3, 0), atol=1e-6)


@pytest.mark.parametrize(("name", "head"), [("vit", "mlp3"), ("clip", "tanh"), ("resnet50", "bn")])
def test_saved_and_loaded_it_gives_the_same_vectors(name, head, tmp_path):
    model = tiny(name, head=head).eval()
    model.save_pretrained(tmp_path)
    embedder = direct.load(tmp_path, LoadOptions(device="cpu", precision="fp32"))
    images = pictures(3)
    with torch.no_grad():
        expected = model(pixel_values=model.backbone.preprocess(images)).embeddings.numpy()
    found = embedder.embed_images(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_batch_size_does_not_matter(tiny_checkpoint):
    embedder = direct.load(tiny_checkpoint("direct"), LoadOptions(device="cpu", precision="float64"))
    images = pictures(3)
    one_by_one = np.concatenate([embedder.embed_images([image]) for image in images])
    np.testing.assert_allclose(embedder.embed_images(images), one_by_one, atol=1e-6)


def test_wrong_heads_and_embedders_are_named(tiny_checkpoint):
    with pytest.raises(BadInput, match=r"No head 'mlp9'\. There are: mlp3"):
        tiny(head="mlp9")
    with pytest.raises(BadInput, match="learnt the embeddings of all-MiniLM-L6-v2"):
        direct.load(tiny_checkpoint("direct"), LoadOptions(embedder="other"))


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("head.")}, path, {"format": "pt"})
    with pytest.raises(BadCheckpoint):
        direct.load(tmp_path, LoadOptions())
