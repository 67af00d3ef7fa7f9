"""Reading against attention written out, and kernels chosen by name or by measurement."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ddim_lightning.network.attention import Attention, attend_reading, sdpa_attention
from ddim_lightning.network.kernels import (
    CPU_KERNELS,
    CUDA_KERNELS,
    MeasuredAttention,
    find_fault,
    list_measured,
    resolve_attention,
)

CPU = torch.device("cpu")
BUFFERED = Attention("buffered", sdpa_attention)


def plain_attention(query, key, value, bias):
    """A user's own backend: attention written out."""
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (logits if bias is None else logits + bias).softmax(-1) @ value


def make_rows(rows, tokens=11, heads=3, channels=8):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(rows, tokens, heads, channels, generator=generator) for _ in range(3)]


def attend_by_hand(query, keys, values, kv_scales):
    """One row, (tokens, heads, channels) each: softmax written out over several sets of keys, in double precision."""
    numerator, denominator = torch.zeros_like(query, dtype=torch.float64), 0.0
    for key, value, kv_scale in zip(keys, values, kv_scales, strict=True):
        logits = torch.einsum("qhc,khc->qhk", query.double(), key.double()) / math.sqrt(query.shape[-1])
        numerator += kv_scale * torch.einsum("qhk,khc->qhc", logits.exp(), value.double())
        denominator = denominator + kv_scale * logits.exp().sum(-1, keepdim=True)
    return (numerator / denominator).float()


@pytest.mark.parametrize("attention", [CPU_KERNELS["sdpa"], BUFFERED, Attention("own", plain_attention)])
@pytest.mark.parametrize("kv_scale", [None, 1.0, 0.3, 0.0])
@pytest.mark.parametrize(("kept", "reads"), [(2, (2, 3)), (3, (3, 3)), (4, (3,)), (2, (3, 2)), (4, ()), (3, (4, 3, 4))])
def test_reading_is_attention_over_both_sets_of_keys(kept, reads, kv_scale, attention):
    query, key, value = make_rows(5)
    scalar = None if kv_scale is None else torch.tensor(kv_scale)
    ours = attend_reading(query[:kept], key, value, reads, scalar, attention)
    assert ours.shape == query[:kept].shape
    for row in range(kept):
        others = [reads[row]] if row < len(reads) else []
        theirs = attend_by_hand(
            query[row],
            [key[k] for k in (row, *others)],
            [value[k] for k in (row, *others)],
            [1.0, 1.0 if kv_scale is None else kv_scale][: 1 + len(others)],
        )
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [35, 40, 64, 226 + 17_550])
@pytest.mark.parametrize("name", ["flash", "flash3", "flash4", "cudnn", "efficient"])
def test_kernels_of_a_gpu_say_their_log_sum_exp(name, tokens):
    """Their operators on a device that is not there: names, arguments, shapes and strides are right."""
    attend_lse = CUDA_KERNELS[name].attend_lse
    assert attend_lse is not None
    with FakeTensorMode():
        # Turned, and parts of one product, as blocks make them.
        product = torch.empty(2, tokens, 3, 4, 64, dtype=torch.bfloat16, device="cuda")
        query, key, value = (part.transpose(1, 2) for part in product.unbind(2))
        for keys in (tokens, 2 * tokens):
            many = (torch.cat([part] * (keys // tokens), dim=2) for part in (key, value))
            output, lse = attend_lse(query, *many)
            assert output.shape == (2, 4, tokens, 64) and output.transpose(1, 2).is_contiguous()
            assert lse.shape == (2, 4, tokens) and lse.dtype == torch.float32


def slow_attention(query, key, value, bias):
    for _ in range(50):
        output = plain_attention(query, key, value, bias)
    return output


def broken_attention(query, key, value, bias):
    raise RuntimeError("no kernel for this GPU\nand more")


def test_the_fastest_kernel_is_chosen_and_remembered(tmp_path):
    slow, fast, broken = Attention("slow", slow_attention), BUFFERED, Attention("broken", broken_attention)
    memory = tmp_path / "cache" / "attention.json"
    choice = MeasuredAttention((broken, slow, fast), memory)
    shape = (1, 2, 64, 16)
    assert choice.choose(shape, torch.float32, CPU) is fast
    ((key, measured),) = json.loads(memory.read_text()).items()
    assert key == f"cpu, torch {torch.__version__}, torch.float32, 1x2x64x16"
    assert set(measured) == {"slow", "buffered"} and measured["slow"] > measured["buffered"] > 0
    assert choice.chosen == {key: "buffered"}
    # A later run goes by what was measured, and does not measure again.
    memory.write_text(json.dumps({key: {"slow": 1.0, "buffered": 2.0}}))
    assert MeasuredAttention((broken, slow, fast), memory).choose(shape, torch.float32, CPU) is slow
    # What is no longer there is measured anew, and so is another shape.
    assert MeasuredAttention((fast,), memory).choose(shape, torch.float32, CPU) is fast
    choice.choose((2, 2, 64, 16), torch.float32, CPU)
    assert len(json.loads(memory.read_text())) == 2


def test_another_flash_attention_is_measured_anew(tmp_path, monkeypatch):
    """The package is not there, so that its kernel is passed over; the key says which one would have run."""
    candidates = (BUFFERED, Attention("flash3", plain_attention, None, "FA3"))
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = []
    for version in ("3.0.0b1", "3.0.0"):
        for old in tmp_path.glob("*.dist-info"):
            old.rename(tmp_path / "gone")
        write_package(tmp_path, f"flash_attn_3-{version}", f"Name: flash-attn-3\nVersion: {version}\n")
        choice = MeasuredAttention(candidates, tmp_path / "attention.json")
        assert choice.choose((1, 2, 8, 16), torch.float32, CPU) is BUFFERED
        keys += choice.chosen
        assert f", flash3 {version}, torch.float32, " in keys[-1]
    assert list(json.loads((tmp_path / "attention.json").read_text())) == keys


def write_package(folder, name, metadata):
    (folder / f"{name}.dist-info").mkdir()
    (folder / f"{name}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")


def test_auto_measures_what_may_be_part_of_a_graph():
    assert {kernel.name for kernel in list_measured()} == {"cudnn", "flash", "flash3", "flash4", "efficient"}
    assert all(kernel.attend_lse is not None for kernel in list_measured())


def test_a_kernel_that_does_not_run_says_why():
    assert find_fault(BUFFERED, CPU) is None
    assert find_fault(Attention("broken", broken_attention), CPU) == "RuntimeError: no kernel for this GPU"
    fault = find_fault(Attention("flash3", sdpa_attention, None, "FA3"), CPU)
    assert fault is not None and "flash_attn_interface" in fault


def test_a_choice_without_a_place_to_remember_it(tmp_path):
    (tmp_path / "file").write_text("")
    choice = MeasuredAttention((BUFFERED,), tmp_path / "file" / "attention.json")
    assert choice.choose((1, 2, 8, 16), torch.float32, CPU) is BUFFERED


def test_no_kernel_at_all_says_why(tmp_path):
    choice = MeasuredAttention((Attention("broken", broken_attention),), tmp_path / "attention.json")
    with pytest.raises(
        RuntimeError, match=r"^attention: no kernel runs \(1, 2, 8, 16\) .*: broken: RuntimeError: no kernel for this"
    ):
        choice.choose((1, 2, 8, 16), torch.float32, CPU)


def test_a_backend_of_ones_own_by_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_backend.py").write_text(
        "calls = []\n"
        "def attend(query, key, value, bias):\n"
        "    calls.append(query.shape)\n"
        "    from torch.nn.functional import scaled_dot_product_attention\n"
        "    return scaled_dot_product_attention(query, key, value, attn_mask=bias)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    attention = resolve_attention("my_backend.attend", CPU)
    assert isinstance(attention, Attention) and attention.name == "my_backend.attend"
    attend_reading(*make_rows(2), (), None, attention)
    import my_backend

    assert my_backend.calls == [(2, 3, 11, 8)]


def test_automatic_backend_of_a_cpu_is_sdpa():
    assert resolve_attention("auto", CPU) is resolve_attention("sdpa", CPU) is CPU_KERNELS["sdpa"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xformers", "'xformers' needs a CUDA device and an xformers .* torch .*, got cpu; on cpu .*'auto', 'sdpa'"),
        ("cudnn", "'cudnn' needs a CUDA device, got cpu; on cpu .*'auto', 'sdpa'"),
        ("flash3", "'flash3' needs a CUDA device and FlashAttention 3 .*, got cpu; on cpu .*'auto', 'sdpa'"),
        (
            "flash4",
            "'flash4' needs a CUDA device and FlashAttention 4 .*flash-attn-4.*, got cpu; on cpu .*'auto', 'sdpa'",
        ),
        ("fastest", "'fastest' could not be imported"),
        ("no_such_module.attend", "'no_such_module.attend' could not be imported"),
        ("math.attend", "'math.attend' could not be imported"),
        ("math.pi", "must be the dotted path of a function, got 'math.pi'"),
    ],
)
def test_unavailable_backends_say_what_is_available(name, message):
    with pytest.raises(ValueError, match=f"^attention: {message}"):
        resolve_attention(name, CPU)
