"""The emulated device by itself: what it refuses, what it counts, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.emulated_cuda import GIB, emulate_cuda

MIB = 2**20


@pytest.fixture
def device():
    with emulate_cuda() as emulated:
        yield emulated


def test_tensors_have_all_but_values(device):
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    assert x.device == torch.device("cuda", 0) and x.dtype == torch.bfloat16 and x.stride() == (15, 5, 1)
    y = x.transpose(1, 2)[:, 1:]
    assert y.shape == (2, 4, 3) and y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert y.data_ptr() - x.data_ptr() == 2
    with torch.inference_mode():
        assert torch.zeros(2).to("cuda").device == torch.zeros(2).to(x).device == x.device
    back = y.float().cpu()
    assert back.shape == (2, 4, 3) and back.dtype == torch.float32 and not back.any()


def test_tensors_of_the_host_stay_real(device):
    x = torch.arange(3.0)
    assert x.sum().item() == 3.0 and torch.equal(x + 1, torch.tensor([1.0, 2.0, 3.0]))
    assert not device.waits.counts and device.memory.current == 0


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.zeros(4),
        lambda x: torch.cat([x, torch.zeros(4, 4)]),
        lambda x: nn.functional.linear(x, torch.zeros(4, 4)),
        nn.Linear(4, 4),
    ],
)
def test_devices_do_not_mix(mix, device):
    with pytest.raises(RuntimeError, match="device"):
        mix(torch.zeros(4, 4, device="cuda"))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x @ torch.zeros(4, 4, device="cuda"),
        lambda x: nn.functional.linear(x, torch.zeros(4, 4, device="cuda", dtype=x.dtype), torch.zeros(4).cuda()),
        lambda x: nn.functional.layer_norm(x, (4,), torch.zeros(4, device="cuda")),
        lambda x: nn.functional.conv1d(x, torch.zeros(4, 4, 1, device="cuda")),
        lambda x: scaled_dot_product_attention(*[x[None, None]] * 2, torch.zeros(1, 1, 4, 4, device="cuda")),
    ],
)
def test_dtypes_do_not_mix_in_products_and_norms(mix, inference, device):
    with torch.inference_mode(inference), pytest.raises(RuntimeError, match="dtype"):
        mix(torch.zeros(4, 4, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("item", lambda x: x.sum().item()),
        ("item", lambda x: bool((x > 0).all())),
        ("item", lambda x: float(x[0])),
        ("equal", lambda x: torch.equal(x, x)),
        ("copy to the host", lambda x: x.cpu()),
        ("copy to the host", lambda x: torch.zeros(4).copy_(x, non_blocking=True)),
        ("copy from pageable memory", lambda x: torch.ones(4).to(x.device)),
        ("copy from pageable memory", lambda x: torch.ones(4).to(x.device, non_blocking=True)),
        ("copy from pageable memory", lambda x: x.copy_(torch.ones(4), non_blocking=True)),
        ("copy from pageable memory", lambda x: x[torch.tensor([0, 2])]),
        ("copy from pageable memory", lambda x: torch.tensor([1.0], device="cuda")),
        ("nonzero", lambda x: x.nonzero()),
        ("nonzero", lambda x: x.index_put_((x > 0,), x)),
        ("print", lambda x: f"{x}"),
        ("synchronize", lambda _: torch.cuda.synchronize()),
        ("synchronize", lambda _: torch.cuda.current_stream().synchronize()),
    ],
)
def test_waits_are_named_with_their_line(kind, ask, device):
    x = torch.zeros(4, device="cuda")
    device.enter("edit", in_step=True)
    ask(x)
    ((wait, count),) = device.waits.list_in_steps().items()
    assert (wait.kind, wait.stage, count) == (kind, "edit", 1)
    assert wait.place.ours == f"emulated_cuda/test_device.py:{ask.__code__.co_firstlineno}"


@pytest.mark.parametrize("draw", [lambda x, **by: x.normal_(**by), lambda x, **by: torch.randn(4, device="cuda", **by)])
def test_a_generator_of_the_host_draws_nothing_for_the_device(draw, device):
    x = torch.zeros(4, device="cuda")
    with pytest.raises(RuntimeError, match="generator"):
        draw(x, generator=torch.Generator())
    assert draw(x, generator=torch.Generator("cuda")).device.type == "cuda"


def test_one_value_for_all_that_a_mask_picks_does_not_wait(device):
    x = torch.zeros(4, device="cuda")
    x[x > 0] = 1.0
    assert not device.waits.counts


def test_copies_from_pinned_memory_do_not_wait(device):
    pinned = torch.ones(1000).pin_memory()
    x = pinned.to("cuda", non_blocking=True)
    x.copy_(torch.empty(1000, pin_memory=True), non_blocking=True)
    assert not device.waits.counts
    assert device.pinned.current == 4096 and device.pinned.peaks["start"].nbytes == 8192  # powers of two


def test_memory_is_counted_by_storage_and_by_stage(device):
    x = torch.empty(MIB, dtype=torch.uint8, device="cuda")
    views = [x[: MIB // 2], x.view(2, -1), x.detach()]
    assert device.memory.current == MIB == torch.cuda.memory_allocated()
    device.enter("invert")
    y = (x.float() + 1.0).to(torch.uint8)
    line = test_memory_is_counted_by_storage_and_by_stage.__code__.co_firstlineno + 5
    del x, views
    assert device.memory.current == MIB and y.shape == (MIB,)
    assert device.peaks_gib == pytest.approx({"start": MIB / GIB, "invert": 9 * MIB / GIB})
    (largest, count), *_ = device.memory.peaks["invert"].list_largest(3)
    assert largest.nbytes == 4 * MIB and largest.dtype == torch.float32 and count == 2
    assert largest.place.ours == f"emulated_cuda/test_device.py:{line}"


def test_what_is_made_on_the_way_is_counted_under_inference_mode_too(device):
    peaks = []
    x = torch.zeros(1, MIB, device="cuda", dtype=torch.bfloat16)
    for inference in (False, True):
        torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode(inference), torch.no_grad():
            nn.functional.layer_norm(x, x.shape[-1:]).reshape(-1).float()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] == peaks[1] >= 8 * MIB


def test_memory_ends_where_it_is_told_to():
    with emulate_cuda(total_gib=1.0, limited=True):
        assert torch.cuda.mem_get_info() == (GIB, GIB)
        half = torch.empty(GIB // 2, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError, match=r"0\.75 GiB.*1\.00 GiB.*0\.50 GiB"):
            torch.empty(3 * GIB // 4, dtype=torch.uint8, device="cuda")
        assert torch.cuda.mem_get_info() == (GIB // 2, GIB)
        del half
        torch.empty(3 * GIB // 4, dtype=torch.uint8, device="cuda")


def test_modules_move_in_place(device):
    module = nn.Linear(3, 4)
    module.tied = module.weight
    weight, kept = module.weight, weakly(module)
    module.to("cuda", torch.bfloat16)
    assert module.weight is weight and module.tied is weight and kept == weakly(module)
    assert weight.device.type == "cuda" and isinstance(weight, nn.Parameter) and weight.requires_grad
    assert device.memory.current == 2 * 512
    assert module(torch.zeros(2, 3, device="cuda", dtype=torch.bfloat16)).shape == (2, 4)


def weakly(module):
    return [id(parameter) for parameter in module.parameters()]


def test_streams_and_events_can_be_asked(device):
    stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        event.record(stream)
    torch.cuda.current_stream().wait_event(event)
    later = stream.record_event()
    assert event.query() and event.elapsed_time(later) >= 0.0
    torch.cuda.synchronize()


def look():
    tensor, storage = torch.Tensor, torch.UntypedStorage
    return torch.cuda.is_available(), torch.cuda.Stream, tensor.data, tensor.pin_memory, storage.data_ptr


def test_nothing_is_left_behind():
    before = look()
    with emulate_cuda(capability=(8, 6)):
        assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (8, 6)
        assert torch.cuda.get_device_properties(0).total_memory == 80 * GIB
    assert look() == before
    parameter = nn.Parameter(torch.zeros(3))
    parameter.data = torch.ones(3)
    assert parameter.sum().item() == 3.0


@pytest.mark.parametrize("inference", [False, True])
def test_interpolation_stays_in_its_dtype(inference, device):
    with torch.inference_mode(inference):
        x = torch.zeros(1, 1, 256, 1024, dtype=torch.bfloat16, device="cuda")
        y = nn.functional.interpolate(x, scale_factor=2.0)
    assert device.memory.since_reset == x.nbytes + y.nbytes == 5 * MIB / 2


def test_upsampling_takes_no_more_than_its_result(device):
    x = torch.zeros(1, 4, 128, 128, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        nn.functional.interpolate(x, scale_factor=2.0)
    assert device.memory.peaks["start"].nbytes == 5 * x.nbytes
