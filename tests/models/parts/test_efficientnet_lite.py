"""EfficientNet-Lite: the same feature maps as the package that publishes the weights."""

from __future__ import annotations

import pytest
import torch

from captioner.models.parts.backbones.efficientnet_lite import EfficientNetLite, fold_published

published = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `test` brings it")


@pytest.mark.parametrize(("size", "pixels"), [("lite0", 96), ("lite2", 130), ("lite4", 64)])
@torch.inference_mode()
def test_feature_maps_equal_the_published_networks(size, pixels):
    torch.manual_seed(0)
    theirs = published.EfficientNet.from_name(f"efficientnet-{size}", image_size=pixels).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # fresh statistics would hide a wrong fold
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
    ours = EfficientNetLite(size).eval()
    ours.load_state_dict(fold_published(theirs.state_dict()))
    x = torch.randn(2, 3, pixels, pixels)
    torch.testing.assert_close(ours(x), theirs.extract_features(x), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_statistics_hold_the_pooled_map_then_each_stages_mean_and_spread():
    torch.manual_seed(0)
    net = EfficientNetLite("lite0").eval()
    x = torch.randn(2, 3, 64, 64)
    found = net.statistics(x)
    assert found.shape == (2, 1280 + 2 * (16 + 24 + 40 + 80 + 112 + 192 + 320))
    torch.testing.assert_close(found[:, :1280], net(x).mean((2, 3)))
    first = net.blocks[0](net.stem(x))
    torch.testing.assert_close(found[:, 1280:1296], first.mean((2, 3)))
    torch.testing.assert_close(found[:, 1296:1312], first.flatten(2).std(2, correction=0))


@torch.inference_mode()
def test_packed_it_gives_the_same_numbers():
    torch.manual_seed(0)
    net = EfficientNetLite("lite0").eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64)
    plain = net(x)
    net.pack()
    assert net.head.weight.numel() in (0, 320 * 1280)  # no second copy, whether torch can pack here or not
    torch.testing.assert_close(net(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 65])  # the odd pixel of a step of two: to the right, or none
def test_gradients_change_no_number_and_reach_every_weight(size):
    torch.manual_seed(0)
    net = EfficientNetLite("lite0").eval()
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        fused = net(x)
    found = net(x)
    torch.testing.assert_close(found, fused)
    found.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
