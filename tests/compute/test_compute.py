"""Models made ready for inference compute what they computed before, whatever this machine's torch can pack."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from captioner import compute
from captioner.contracts import LoadOptions
from captioner.errors import BadInput


class Model(nn.Module):
    """The kinds of layers that our models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32, bias=False), nn.GELU()) for _ in range(2)])
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.last = Conv1D(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float64", 1e-12), ("fp32", 1e-5), ("auto", 1e-5), ("bf16", 0.05), ("int8", 0.1)]
)
def test_prepared_on_a_cpu(model: Model, precision: str, tolerance: float) -> None:
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    expected = copy.deepcopy(model).double()(x)
    prepared = compute.prepare(model, LoadOptions(device="cpu", precision=precision))
    assert not prepared.training
    assert not any(weight.requires_grad for weight in prepared.parameters())
    given = prepared(x.to(next(prepared.parameters()).dtype))
    assert (given.double() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.fixture
def avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this CPU had it: the rule, not the arithmetic, depends on it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def test_small_layers_stay_plain_without_avx512(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(compute.packed, "LARGE", 32 * 32)
    prepared = compute.prepare(model, LoadOptions(device="cpu"))
    assert type(prepared.first) is nn.Linear
    assert type(prepared.blocks[0][0]) is compute.PackedLinear
    assert type(prepared.last) is Conv1D


def test_wide_layers_are_packed_without_avx512_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert compute.pays_to_pack(torch.empty(768, 768))
    assert not compute.pays_to_pack(torch.empty(1536, 384))  # as many weights


HALF = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="a plain product remains")


def multiplies_signed() -> bool:
    """torch 2.6 multiplies unsigned integers alone."""
    try:
        compute.Int8Linear(torch.ones(8, 16), None)(torch.ones(1, 16))
    except RuntimeError as error:
        return "should be uint8" not in str(error)
    return True


SIGNED = pytest.mark.skipif(not multiplies_signed(), reason="torch's own quantization remains")


@torch.no_grad()
def round_to_half(*layers: nn.Module) -> None:
    """Give these layers weights as a float16 checkpoint has them."""
    for layer in layers:
        layer.weight.copy_(layer.weight.half())


@HALF
def test_float16_weights_are_read_as_such_and_give_the_same_numbers(model: Model) -> None:
    round_to_half(model.first, model.last)
    x = torch.randn(7, 5, 16)
    plain = compute.prepare(copy.deepcopy(model), LoadOptions(device="cpu"))
    half = compute.prepare(model, LoadOptions(device="cpu"), small=model)
    assert type(half.first) is type(half.last) is compute.HalfLinear
    assert type(half.blocks[0][0]) is not compute.HalfLinear  # its weights have more digits
    with torch.inference_mode():
        torch.testing.assert_close(half(x), plain(x))
        assert torch.equal(half.first(x)[:3], half.first(x[:3]))  # a row does not depend on its neighbours


@HALF
@torch.inference_mode()
def test_a_traced_function_is_the_same_for_other_sizes(model: Model) -> None:
    round_to_half(model.first, model.last, *(block[0] for block in model.blocks))
    prepared = compute.prepare(model, LoadOptions(device="cpu"), small=model)
    traced = compute.traced(prepared.forward, prepared, torch.randn(1, 1, 16))
    assert traced != prepared.forward
    for shape in ((3, 5, 16), (1, 2, 16)):
        x = torch.randn(shape)
        assert torch.equal(traced(x), prepared(x))


def test_what_cannot_be_traced_stays_as_it_is(model: Model) -> None:
    assert compute.traced(str, model, torch.randn(1, 1, 16)) is str  # a text is no tensor


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_packed_layers_are_traced(precision: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 8, bias=False))
    layers = compute.prepare(plain, LoadOptions(device="cpu", precision=precision))
    if not isinstance(layers[0], (compute.PackedLinear, compute.Int8Linear)) or layers[0].packed is None:
        pytest.skip("here it is torch's own layer")
    dtype = layers[0].weight.dtype
    traced = compute.traced(layers.forward, layers, torch.randn(1, 16, dtype=dtype))
    assert traced != layers.forward
    others = torch.randn(5, 16, dtype=dtype)
    assert torch.equal(traced(others), layers(others))


def test_many_rows_of_a_narrow_layer_are_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)  # the rule, not the arithmetic
    torch.manual_seed(0)
    layer = compute.PackedLinear(torch.randn(8, 16, dtype=torch.bfloat16), torch.randn(8, dtype=torch.bfloat16), "gelu")
    x = torch.randn(2, 289, 16, dtype=torch.bfloat16)
    y = layer(x)
    assert layer.in_parts
    torch.testing.assert_close(y, torch.stack([layer(picture) for picture in x]))


@pytest.mark.parametrize("rows", [576, 577, 578])
def test_a_picture_of_577_rows_is_multiplied_in_parts_without_avx512(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 16), torch.randn(8)
    layer = compute.PackedLinear(weight, bias, "gelu")
    assert (rows in layer.in_parts) == (rows > 576 and not compute.has_avx512())
    x = torch.randn(rows, 16)
    torch.testing.assert_close(layer(x), nn.functional.gelu(nn.functional.linear(x, weight, bias)))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (compute.PackedLinear, torch.float32),
        (compute.PackedLinear, torch.bfloat16),
        pytest.param(compute.HalfLinear, torch.float32, marks=HALF),
        pytest.param(compute.Int8Linear, torch.float32, marks=SIGNED),
    ],
)
@torch.inference_mode()
def test_a_layer_of_any_layout_can_be_copied_and_sent(kind: type[nn.Module], dtype: torch.dtype) -> None:
    """torch's own words for a packed weight: "Cannot access storage of OpaqueTensorImpl"."""
    layer = kind(torch.randn(8, 16, dtype=dtype), torch.randn(8, dtype=dtype))
    x = torch.randn(3, 16, dtype=dtype)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(again) is kind
        torch.testing.assert_close(again(x), layer(x))


def test_fp32_is_packed_and_float64_is_not(model: Model, avx512: None) -> None:
    exact = compute.prepare(copy.deepcopy(model), LoadOptions(device="cpu", precision="float64"))
    assert type(exact.first) is nn.Linear
    packed = compute.prepare(model, LoadOptions(device="cpu"))
    assert type(packed.first) is type(packed.last) is compute.PackedLinear
    assert type(packed.attention.out_proj) is not compute.PackedLinear  # nn.MultiheadAttention reads its weight itself
    assert packed.first.weight.dtype == torch.float32


def test_without_the_private_operator_the_product_is_plain(
    model: Model, avx512: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(3, 5, 16)
    expected = model(x)
    monkeypatch.setattr(compute.packed, "_packed", lambda weight: None)
    prepared = compute.prepare(model, LoadOptions(device="cpu"))
    assert prepared.first.packed is None
    torch.testing.assert_close(prepared(x), expected)


@pytest.mark.parametrize("packs", [True, False])
def test_gelu_is_fused(packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packs:
        monkeypatch.setattr(compute.packed, "_packed", lambda weight: None)
    layer, x = nn.Linear(16, 8), torch.randn(4, 16)
    fused = compute.PackedLinear(layer.weight.detach(), layer.bias.detach(), "gelu")
    torch.testing.assert_close(fused(x), nn.functional.gelu(layer(x)))


INT8 = pytest.mark.skipif(not compute.multiplies_int8(), reason="torch's own quantization remains")


@INT8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_rows_of_8_bits_keep_their_numbers_and_do_not_depend_on_neighbours(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 33, bias=bias)
    transposed = linear.weight.t().contiguous().t()
    for weight in (linear.weight, transposed):
        layer = compute.Int8Linear(weight, linear.bias, dtype)
        x = torch.randn(2, 5, 70) * torch.tensor([[1.0, 1e-6, 0.0, 1e3, 1e6]]).unsqueeze(-1)  # each row its scale
        given = layer(x.to(dtype))
        assert given.dtype == layer.weight.dtype == dtype
        without = 0 if linear.bias is None else linear.bias
        products = linear(x) - without
        error = (given.float() - without - products).norm(dim=-1)
        assert (error <= 0.03 * products.norm(dim=-1) + 0.01).all()
        assert torch.equal(layer(x[:1, 1:3].to(dtype)), given[:1, 1:3])
    strided = torch.randn(70, 4, dtype=dtype).t()
    assert torch.equal(layer(strided), layer(strided.contiguous()))
    assert layer(x[0, :0].to(dtype)).shape == (0, 33)
    assert layer(torch.full((1, 70), torch.nan, dtype=dtype)).isnan().all()  # a fault is not hidden


@INT8
def test_int8_is_bf16_in_between_and_leaves_gpt2s_layers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(compute.int8, "has_bf16", lambda native=native: native)
        prepared = compute.prepare(copy.deepcopy(model), LoadOptions(device="cpu", precision="int8"))
        assert type(prepared.first) is type(prepared.blocks[0][0]) is compute.Int8Linear
        assert type(prepared.last) is not compute.Int8Linear
        assert prepared(torch.randn(3, 5, 16, dtype=dtype)).dtype == dtype
    model.blocks.append(nn.Conv2d(32, 32, 3))  # who convolves more stays in fp32
    monkeypatch.setattr(compute.int8, "has_bf16", lambda: True)
    assert compute.prepare(model, LoadOptions(device="cpu", precision="int8")).first.weight.dtype == torch.float32


def test_int8_without_exact_sums_and_around_small_decoders_is_torchs_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, own = LoadOptions(device="cpu", precision="int8"), torch.ao.nn.quantized.dynamic.Linear
    assert type(compute.prepare(copy.deepcopy(model), options, small=nn.ModuleList()).first) is own
    monkeypatch.setattr(compute.inference, "multiplies_int8", lambda: False)
    assert type(compute.prepare(model, options).first) is own


@pytest.mark.parametrize("fault", [RuntimeError, AttributeError, None])
def test_products_of_8_bits_are_tried_before_they_are_used(
    fault: type[Exception] | None, avx512: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def product(*_arguments: object) -> torch.Tensor:
        if fault is not None:
            raise fault
        return torch.full((64, 64), 32767.0 * 32)  # as sums of two come out that do not fit 16 bits

    monkeypatch.setattr(compute.int8, "_int8_product", product)
    assert not compute.multiplies_int8.__wrapped__()


def test_devices_and_precisions_by_name() -> None:
    assert compute.device("cpu") == torch.device("cpu")
    assert compute.precision("auto", torch.device("cpu")) == "fp32"
    assert compute.precision("bf16", torch.device("cpu")) == "bf16"
    assert compute.precision("auto", torch.device("mps")) == "fp16"
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(BadInput, match=wrong):
            compute.device(wrong)
    with pytest.raises(BadInput, match="fp8"):
        compute.precision("fp8", torch.device("cpu"))
    with pytest.raises(BadInput, match="int8 is for CPUs"):
        compute.precision("int8", torch.device("cuda"))


def test_batch_size_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(compute.devices, "free_memory", lambda where: 8_000_000_000)
    sizes = [compute.fits(weights, cpu) for weights in (10**7, 10**9, 10**10, 10**11)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1
    monkeypatch.undo()
    assert compute.free_memory(cpu) > 0
