"""Weights in host memory: their copies, the two slots they are streamed through, and modules that are parked."""

from __future__ import annotations

import contextlib
import gc
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ddim_lightning.runtime.host_memory import ALIGNMENT, HostCopy
from ddim_lightning.runtime.offload import ParkedModule, Placement, StreamedModule
from ddim_lightning.runtime.streaming import WeightStream

CPU = torch.device("cpu")


class Part(NamedTuple):
    weight: Tensor
    bias: Tensor | None
    eps: float


class Block(NamedTuple):
    first: Part
    second: Part


def make_block(seed):
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(7, 5, generator=generator)
    return Block(
        Part(wide.t(), torch.randn(3, generator=generator).bfloat16(), 0.5),
        Part(torch.randn(2, 3, generator=generator), None, 0.25),
    )


def is_equal(ours, theirs):
    return all(
        torch.equal(one.weight, other.weight)
        and (one.bias is other.bias or torch.equal(one.bias, other.bias))
        and one.eps == other.eps
        for one, other in zip(ours, theirs, strict=True)
    )


def count_storages(nbytes):
    """How many storages of a size are alive."""
    found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.device == CPU]
    return len({one.untyped_storage().data_ptr() for one in found if one.untyped_storage().nbytes() == nbytes})


class Logged(WeightStream[Block]):
    """Says when which block is brought."""

    log: list[tuple[str, int]]

    def _load(self, slot, block):
        self.log.append(("load", block))
        super()._load(slot, block)


def make_stream(count):
    blocks = [make_block(seed) for seed in range(count)]
    stream = Logged([HostCopy(block, CPU) for block in blocks], CPU)
    stream.log = []
    return blocks, stream


def use(stream, blocks, stop=None):
    """Use every block once; fail before block ``stop`` is used."""
    for k, block in enumerate(stream):
        if k == stop:
            raise KeyboardInterrupt
        stream.log.append(("use", k))
        assert is_equal(block, blocks[k])
    assert stream.log[-1] == ("use", len(blocks) - 1)


def test_a_copy_holds_values_strides_and_plain_values():
    block = make_block(0)
    copy = HostCopy(block, CPU)
    other = copy.view(copy.buffer.clone())
    for ours in (copy.weights, other):
        assert is_equal(ours, block) and type(ours) is Block and type(ours.first) is Part
        assert ours.first.weight.stride() == block.first.weight.stride() and not ours.first.weight.is_contiguous()
        assert not any(part.weight._is_view() for part in ours)
    block.first.weight.zero_()
    copy.weights.second.weight.zero_()
    assert other.first.weight.abs().sum() > 0 and other.second.weight.abs().sum() > 0


def test_tensors_begin_where_those_they_are_copied_from_do():
    buffer = torch.arange(200.0)
    tensors = (buffer[3:50], torch.ones(5), buffer[70:90].view(4, 5))
    copies = HostCopy(tensors, CPU).weights
    assert [one.data_ptr() % 64 for one in copies] == [one.data_ptr() % 64 for one in tensors]
    assert all(torch.equal(one, other) for one, other in zip(copies, tensors, strict=True))
    assert ALIGNMENT % 64 == 0


def test_for_another_device_they_begin_where_an_allocator_would_put_them():
    buffer = torch.arange(200.0)
    tensors = (buffer[3:50], torch.ones(5), torch.tensor(2.0), torch.empty(0))
    copies = HostCopy(tensors, torch.device("meta")).weights
    assert all((one.data_ptr() - copies[0].data_ptr()) % ALIGNMENT == 0 for one in copies[:3])
    assert all(torch.equal(one, other) for one, other in zip(copies, tensors, strict=True))


def test_it_lies_on_the_host_wherever_tensors_are_made_by_default():
    with torch.device("meta"):  # a Trainer loads models under its own device
        copy = HostCopy((torch.ones(3, device="cpu"),), CPU)
    assert copy.buffer.device == CPU and torch.equal(copy.weights[0], torch.ones(3))


def test_parts_of_one_storage_stay_neighbors():
    whole = torch.randn(6, 5)
    copies = HostCopy((*whole.split(2), torch.ones(3)), CPU).weights
    assert [one.data_ptr() - copies[0].data_ptr() for one in copies[:3]] == [0, 40, 80]
    assert torch.equal(torch.cat(copies[:3]), whole)


@pytest.mark.parametrize("mode", [True, False])
def test_copies_made_under_inference_mode_are_none_of_its_tensors(mode):
    with torch.inference_mode(mode):
        blocks, stream = make_stream(3)
        use(stream, blocks)
        assert not any(block.first.weight.is_inference() for block in stream)
    use(stream, blocks)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_next_block_is_brought_before_this_one_is_used(count):
    blocks, stream = make_stream(count)
    use(stream, blocks)
    first, log = stream.log, []
    assert first[:4] == [("load", 0), ("load", 1), ("use", 0), *([("use", 1)] if count == 2 else [("load", 2)])]
    for k in range(count):
        if count > 2:
            log.append(("load", (k + 1) % count))
        log.append(("use", k))
    assert first[(0 if count == 2 else 1) :][-len(log) :] == log
    # The first block of the next pass is there already; two blocks never leave.
    for _ in range(2):
        stream.log = []
        use(stream, blocks)
        assert stream.log == log


def test_one_block_alone():
    blocks, stream = make_stream(1)
    use(stream, blocks)
    use(stream, blocks)
    assert stream.log == [("load", 0), ("use", 0), ("use", 0)]


@pytest.mark.parametrize("stop", range(4))
def test_a_pass_after_one_that_failed(stop):
    blocks, stream = make_stream(4)
    with pytest.raises(KeyboardInterrupt):
        use(stream, blocks, stop)
    stream.log = []
    use(stream, blocks)
    order = [k for what, k in stream.log if what == "use"]
    assert order == [0, 1, 2, 3]
    for k in order:
        place = stream.log.index(("use", k))
        assert ("load", k) in stream.log[:place] or k == 0 or k in (stop, (stop + 1) % 4)
    # What had been brought when it failed is not brought again.
    held = {stop, (stop + 1) % 4}
    assert (("load", 0) in stream.log[: stream.log.index(("use", 0))]) is (0 not in held)


def test_a_pass_while_an_abandoned_one_is_still_suspended():
    blocks, stream = make_stream(4)
    abandoned = iter(stream)
    _ = next(abandoned), next(abandoned), next(abandoned)
    use(stream, blocks)


@pytest.mark.parametrize("block", range(4))
def test_a_transfer_that_failed_is_made_again(block, monkeypatch):
    blocks, stream = make_stream(4)
    use(stream, blocks)
    stream.park()
    view = HostCopy.view

    def fail(self, buffer):
        if self is stream.copies[block]:
            raise MemoryError
        return view(self, buffer)

    monkeypatch.setattr(HostCopy, "view", fail)
    with pytest.raises(MemoryError):
        use(stream, blocks)
    monkeypatch.setattr(HostCopy, "view", view)
    use(stream, blocks)


class FakeStream:
    """Stands for both streams of a CUDA device, and says what waits for what."""

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append("transfers wait for work")

    def wait_event(self, event):
        self.log.append(f"work waits for slot {event.slot}")


class FakeEvent:
    def __init__(self, log, slot):
        self.log, self.slot = log, slot

    def record(self, stream):
        self.log.append(f"slot {self.slot} filled")


def test_what_waits_for_what(monkeypatch):
    _, stream = make_stream(3)
    stream._slots = stream._make_slots()
    log = []
    fake = FakeStream(log)
    stream._stream = fake
    for place, slot in enumerate(stream._slots):
        slot.arrived = FakeEvent(log, place)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: fake)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for k, _ in enumerate(stream):
        log.append(f"block {k}")
    fill = [["transfers wait for work", f"slot {slot} filled"] for slot in range(2)]
    assert log == [
        *(*fill[0], *fill[1], "work waits for slot 0", "block 0"),
        *(*fill[0], "work waits for slot 1", "block 1"),
        *(*fill[1], "work waits for slot 0", "block 2"),
    ]


def test_no_more_than_two_blocks_are_on_the_device():
    # The size is like no other's.
    copies = [HostCopy((torch.full((12_347,), float(k)),), CPU) for k in range(5)]
    assert count_storages(copies[0].nbytes) == 5
    stream = WeightStream(copies, CPU)
    seen = set()
    for _ in range(2):
        for k, (weight,) in enumerate(stream):
            assert count_storages(copies[0].nbytes) == 5 + 2
            assert weight.eq(k).all()
            seen.add(weight.data_ptr())
    assert len(seen) == 2
    del weight
    stream.park()
    assert count_storages(copies[0].nbytes) == 5
    stream.unpark()
    assert [float(weight[0]) for (weight,) in stream] == [0.0, 1.0, 2.0, 3.0, 4.0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        self.norm = nn.BatchNorm1d(3)
        self.requires_grad_(False).eval()


def list_tensors(module):
    yield from module.parameters()
    yield from module.buffers()


@pytest.mark.parametrize("chunk", [1, 100, 2**20])
def test_a_parked_module_keeps_its_values(chunk):
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parked = ParkedModule(model, CPU, chunk=chunk)
    on_host = [tensor.data_ptr() for tensor in list_tensors(model)]
    x = torch.randn(4, 5)
    wanted = model.norm(model.body(x))
    for _ in range(2):
        for act in (parked.unpark, parked.unpark, parked.park, parked.park):
            with torch.inference_mode():
                act()
            here = [tensor.data_ptr() for tensor in list_tensors(model)]
            assert (here == on_host) is parked.parked
            assert parked.parked or not set(here) & set(on_host)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert torch.equal(model.norm(model.body(x)), wanted)
            assert not any(tensor.is_inference() for tensor in list_tensors(model))


def test_parts_of_one_matrix_stay_so_in_a_parked_module():
    model = nn.ModuleList(nn.Linear(5, 2) for _ in range(3))
    for part, row in zip(model, torch.randn(6, 5).split(2), strict=True):
        part.weight.data = row
    for chunk in (1, 2**20):
        parked = ParkedModule(model, CPU, chunk=chunk)
        for act in (parked.park, parked.unpark):
            act()
            first, *others = [part.weight.data_ptr() for part in model]
            assert others == [first + 40, first + 80]


def test_nothing_is_left_on_the_device_after_parking():
    model = nn.Linear(12_349, 1, bias=False).requires_grad_(False)
    held = []
    parked = ParkedModule(model, CPU, held.clear)
    nbytes = model.weight.nbytes
    (_, copy), *_ = parked._chunks
    assert copy.nbytes == nbytes and count_storages(nbytes) == 1
    parked.unpark()
    held.append(model.weight.detach())
    assert count_storages(nbytes) == 2
    parked.park()
    assert count_storages(nbytes) == 1 and not held


def test_a_module_for_which_there_is_no_room_stays_on_the_host(monkeypatch):
    model = Model()
    parked = ParkedModule(model, CPU, chunk=1)
    on_host = [tensor.data_ptr() for tensor in list_tensors(model)]
    make, calls = torch.empty_like, []

    def fail(*args, **options):
        calls.append(0)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return make(*args, **options)

    monkeypatch.setattr(torch, "empty_like", fail)
    placement = Placement(CPU, {"model": [parked]})
    with pytest.raises(torch.OutOfMemoryError):
        placement.use("model")
    assert parked.parked and on_host == [tensor.data_ptr() for tensor in list_tensors(model)]
    assert placement.current is None
    placement.use("model")
    assert not parked.parked and placement.current == "model"


class Fake:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def park(self):
        self.log.append(f"park {self.name}")

    def unpark(self):
        self.log.append(f"unpark {self.name}")


def test_others_leave_before_a_part_comes():
    log = []
    placement = Placement(CPU, {"a": [Fake("a", log)], "b": [Fake("b", log), Fake("bb", log)]})
    for name in ("a", "a", "b", None, "b"):
        placement.use(name)
    assert log == [
        *("park b", "park bb", "unpark a"),
        *("park a", "unpark b", "unpark bb"),
        *("park a", "park b", "park bb"),
        *("park a", "unpark b", "unpark bb"),
    ]


def test_a_placement_is_for_one_device():
    placement = Placement(CPU, {})
    placement.check(CPU)
    with pytest.raises(ValueError, match=r"^offload: .*cpu .*got device 'meta'"):
        placement.check(torch.device("meta"))


def test_a_streamed_module_has_one_layer_at_a_time_on_the_device(monkeypatch):
    class Fails(nn.Linear):
        def forward(self, x):
            assert len(x) == 2
            return super().forward(x)

    layers = [Fails(3, 3) for _ in range(3)]
    module = nn.Sequential(nn.Linear(3, 3), *layers).requires_grad_(False)
    host, seen = [one.weight.data_ptr() for one in module], []

    def find_moved():
        return [one.weight.data_ptr() != place for one, place in zip(module, host, strict=True)]

    wanted = module(torch.ones(2, 3))
    monkeypatch.setattr(nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr(Tensor, "to", lambda tensor, device: tensor.clone())
    streamed = StreamedModule(module, layers, CPU)
    hooks = [layer.register_forward_pre_hook(lambda *_: seen.append(find_moved())) for layer in layers]
    assert torch.equal(module(torch.ones(2, 3)), wanted)
    assert seen == [[True, *(k == j for j in range(3))] for k in range(3)]
    with pytest.raises(AssertionError):
        module(torch.ones(1, 3))
    assert find_moved() == [True, False, False, False]
    streamed.park()
    for hook in hooks:
        hook.remove()
    assert find_moved() == [False] * 4 and not any(layer._forward_pre_hooks for layer in layers)
