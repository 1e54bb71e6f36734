"""Whatever an optimizer keeps is held: odd containers, odd types, odd memory; through JSON too, or refused by name."""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from foreshock.errors import UsageError
from foreshock.guard.snapshots import Snapshots


class Odd(torch.optim.Optimizer):
    """A third-party optimizer: attributes that are state, an inner optimizer, and what a test puts into its state."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1, "schedule": {"k": 0, "weights": [1.0, 2.0]}, "rule": abs})
        self.count = 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        self.noise = torch.Generator().manual_seed(5)
        self.by_id = {id(p): torch.zeros(1) for p in self.param_groups[0]["params"]}
        self.by_tensor = dict.fromkeys(self.param_groups[0]["params"], 0)
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], lr=0.1, momentum=0.9)

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        self.inner.step()
        for group in self.param_groups:
            group["schedule"]["k"] += 1
            group["schedule"]["weights"].append(self.count / 3)
            for slow, p in zip(self.slow, group["params"], strict=True):
                slow.lerp_(p, 0.5)
                self.by_id[id(p)] += p.sum()
                self.by_tensor[p] += 1
                p.add_(torch.randn(p.shape, generator=self.noise), alpha=0.01)
                self.state[p]["history"] = [*self.state[p].get("history", [])[-2:], p.clone()]


def values():
    """Values that JSON would bend, and tensors that a plain copy would."""
    nan = torch.tensor([0x7FC00123, -0x00400DEC], dtype=torch.int32).view(torch.float32)
    return {
        "tuple": (1, (2.5, "a"), []),
        "int keys": {3: "a", (1, 2): "b", None: "c", True: "d", 2.5: "e"},
        "floats": [math.inf, -math.inf, -0.0, 5e-324, 0.1, struct.unpack("<d", b"\1\0\0\0\0\0\xf8\xff")[0]],
        "big": [2**63, -(2**200), 2**53 + 1],
        "deque": deque([torch.ones(2), 3], maxlen=4),
        "counter": Counter({4: 1, 9: 2}),
        "ordered": OrderedDict([("b", 1), ("a", torch.zeros(1))]),
        "default": defaultdict(list, {"x": [1]}),
        "set": {1, "z"},
        "frozen": frozenset({2}),
        "bytes": b"\0\xff",
        "complex": complex(math.inf, -0.0),
        "text": "é \ud800 \0",
        "numpy": [np.float64(math.nan), np.int16(-3), np.datetime64("2020-01-01"), np.arange(6.0)[::2]],
        "none": None,
        "flag": True,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "bf16": torch.randn(5, dtype=torch.bfloat16),
        "half": torch.randn((), dtype=torch.float16),
        "complex tensor": torch.randn(3, dtype=torch.complex128),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "fp8": torch.randn(7).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "nan bits": nan,
        "turned": torch.randn(3, 4).t(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "strided": torch.randn(6, 6)[::2, 1::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "empty": torch.zeros(0, 3),
        "generator": torch.Generator().manual_seed(3),
    }


def bits(value):
    """Returns what distinguishes two values: class, layout and every bit."""
    if isinstance(value, torch.Tensor):
        dense = value.detach().resolve_conj().contiguous().flatten().view(torch.uint8)
        return type(value), value.dtype, value.shape, dense.numpy().tobytes()
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, np.ndarray):
        return "array", value.dtype, value.shape, value.tobytes()
    if isinstance(value, np.generic):
        return value.dtype, value.tobytes()
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return bits(value.real), bits(value.imag)
    if isinstance(value, dict):
        return type(value), [(bits(key), bits(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), getattr(value, "maxlen", 0), [bits(each) for each in value]
    return type(value), value


@pytest.mark.parametrize("way", ["memory", "state", "file"])
def test_every_value_comes_back_exactly(way, tmp_path):
    model = nn.Linear(3, 2)
    optimizer = Odd(model.parameters())
    snapshots = Snapshots(spill=tmp_path / "ring" if way == "file" else None)
    snapshots.attach(model, optimizer)
    optimizer.state[model.weight].update(values())
    optimizer.state["shared"] = {"k": 3}
    wanted, shared = bits(optimizer.state[model.weight]), bits(optimizer.state["shared"])
    snapshots.take(0)
    if way == "state":
        torch.save(snapshots.state_dict(), tmp_path / "state.pt")
        snapshots = Snapshots()
        snapshots.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    elif way == "file":
        snapshots = Snapshots.load(tmp_path / "ring")
    if way == "memory":  # altered in place, replaced, removed, added
        entry = optimizer.state[model.weight]
        for key in ("nan bits", "turned", "channels last", "conjugate"):
            entry[key].zero_()
        entry["deque"].append(7)
        entry["counter"].clear()
        entry["bf16"], entry["tuple"], entry["new"] = torch.zeros(2), None, 1
        entry["default"]["y"].append(2)
        entry["int keys"].clear()
        entry["generator"].manual_seed(9)
        del entry["fp8"], entry["strided"], optimizer.state["shared"]
    else:
        optimizer.state.clear()
    snapshots.attach(model, optimizer)
    snapshots.restore(0)
    assert bits(optimizer.state[model.weight]) == wanted
    assert bits(optimizer.state["shared"]) == shared
    assert list(optimizer.state) == [model.weight, "shared"]


def test_an_optimizers_own_attributes_and_options_come_back():
    model = nn.Linear(3, 2)
    optimizer = Odd(model.parameters())
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)

    def run(steps):
        seen = []
        for step in range(steps):
            for p in model.parameters():
                p.grad = torch.full_like(p, float(step + 1))
            optimizer.step()
            inner = [optimizer.inner.state[p]["momentum_buffer"] for p in model.parameters()]
            state = [optimizer.state[p]["history"] for p in model.parameters()]
            seen.append(bits([optimizer.count, optimizer.slow, inner, state, list(model.parameters())]))
            seen.append(bits(optimizer.param_groups[0]["schedule"]))
            seen.append([bits([optimizer.by_id[id(p)], optimizer.by_tensor[p]]) for p in model.parameters()])
        return seen

    run(2)
    snapshots.take(2)
    state = snapshots.state_dict()
    slow, schedule = optimizer.slow[0], optimizer.param_groups[0]["schedule"]
    first = run(4)
    snapshots.restore(2)
    assert optimizer.slow[0] is slow
    assert optimizer.param_groups[0]["schedule"] is schedule
    assert optimizer.param_groups[0]["rule"] is abs
    assert run(4) == first
    model = nn.Linear(3, 2)
    optimizer = Odd(model.parameters())
    snapshots.load_state_dict(state)
    snapshots.attach(model, optimizer)
    snapshots.restore(2)
    assert run(4) == first


def test_what_cannot_be_written_down_is_refused_by_name(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.bias]["ratio"] = Fraction(1, 3)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    assert snapshots.take(0)
    optimizer.state[model.bias]["ratio"] = None
    snapshots.restore(0)
    assert optimizer.state[model.bias]["ratio"] == Fraction(1, 3)
    with pytest.raises(UsageError, match=r"optimizer\.state\.0\.1\.ratio \(fractions\.Fraction\)"):
        snapshots.state_dict()
    written = Snapshots(spill=tmp_path)
    written.attach(model, optimizer)
    with pytest.raises(UsageError, match=r"state\.0\.1\.ratio"):
        written.take(0)
    assert not list(tmp_path.iterdir())


def test_a_value_that_holds_itself_and_memory_that_is_not_there_are_refused_by_name():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    loop: list[object] = []
    loop.append(loop)
    for value, words in ((loop, "holds itself"), (torch.zeros(2, device="meta"), "meta")):
        optimizer.state[model.bias]["odd"] = value
        assert snapshots.due(0)
        with pytest.raises(UsageError, match=rf"state\.0\.1\.odd.*{words}"):
            snapshots.take(0)
        assert not snapshots.due(1)  # not tried again at every step
        snapshots.drop_after(-1)


def test_tensors_that_share_memory_are_copied_once_and_go_on_sharing_it():
    model = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(0)
    alone = snapshots.nbytes
    moment = torch.ones(100, 100)
    optimizer.state[model.weight].update(first=moment, again=moment, view=moment.view(100, 100), same=model.weight)
    snapshots.take(1)
    assert snapshots.nbytes - alone <= 2 * alone + 1000
    optimizer.state.clear()
    snapshots.restore(1)
    state = optimizer.state[model.weight]
    assert state["first"] is state["again"]
    assert state["same"] is model.weight
    with torch.no_grad():
        model.weight.zero_()
    snapshots.restore_moments(1)
    assert state["same"] is model.weight
    assert not model.weight.any()


def test_tensors_that_have_come_to_share_memory_since_are_parted_again():
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = optimizer.state[model.weight]
    state.update(one=torch.ones(2, 2), two=torch.full((2, 2), 2.0))
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(0)
    state["two"] = state["one"]
    snapshots.restore(0)
    assert float(state["one"].sum()) == 4.0
    assert float(state["two"].sum()) == 8.0


def test_parts_of_wrapped_tensors_are_written_in_place_or_made_again():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = optimizer.state[model.weight]
    state["pair"] = TwoTensor(torch.ones(3), torch.full((3,), 2.0))
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(0)
    live = state["pair"]
    live.a.zero_()
    snapshots.restore(0)
    assert state["pair"] is live
    assert float(live.a.sum()) == 3.0
    del state["pair"], live
    snapshots.restore(0)
    assert float(state["pair"].a.sum()) == 3.0
    assert float(state["pair"].b.sum()) == 6.0


def test_parameters_that_are_wrapped_tensors_are_written_in_place():
    model = nn.Module()
    model.weight = nn.Parameter(TwoTensor(torch.ones(3), torch.full((3,), 2.0)))
    snapshots = Snapshots()
    snapshots.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    snapshots.take(0)
    part = model.weight.a
    with torch.no_grad():
        model.weight.mul_(0.0)
    assert not part.any()
    snapshots.restore_moments(0)
    assert not part.any()
    snapshots.restore(0)
    assert part.tolist() == [1.0, 1.0, 1.0]


class Averages:
    """Averaged weights as some keep them: tensors made in inference mode, handed out as they are."""

    def __init__(self, model):
        with torch.inference_mode():
            self.shadow = [p.detach().clone() for p in model.parameters()]

    def state_dict(self):
        return {"shadow": self.shadow}

    def load_state_dict(self, state):
        self.shadow.clear()
        self.shadow.extend(state["shadow"])


def test_averages_that_were_made_in_inference_mode_come_back_in_place():
    model = nn.Linear(3, 2)
    averages = Averages(model)
    snapshots = Snapshots()
    snapshots.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ema=averages)
    snapshots.take(0)
    first, wanted = averages.shadow[0], bits(averages.shadow)
    with torch.inference_mode():
        first.zero_()
    snapshots.restore(0)
    assert averages.shadow[0] is first
    assert bits(averages.shadow) == wanted
    model(torch.ones(1, 3)).sum().backward()  # the parameters still train
    assert model.weight.grad is not None


def test_a_default_device_of_the_loop_is_nothing_to_snapshots(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight].update(array=np.arange(3), moment=torch.ones(2))
    wanted = bits(dict(optimizer.state[model.weight]))
    with torch.device("meta"):
        snapshots = Snapshots(spill=tmp_path)
        snapshots.attach(model, optimizer)
        snapshots.take(0)
        optimizer.state.clear()
        again = Snapshots.load(tmp_path)
        again.attach(model, optimizer)
        again.restore(0, rng=True)
    assert bits(dict(optimizer.state[model.weight])) == wanted


def test_buffers_that_are_replaced_or_missing_come_back():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("code", torch.arange(4.0))
    model.register_buffer("hidden", torch.ones(1), persistent=False)
    model.register_buffer("none", None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(0)
    model.code, model.none = torch.zeros(7), torch.ones(2)
    model.hidden.zero_()
    snapshots.restore(0)
    assert model.code.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert model.none is None
    assert float(model.hidden) == 1.0


def test_groups_that_were_added_since_stay_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model[0].parameters(), lr=0.1)
    snapshots = Snapshots()
    snapshots.attach(model, optimizer)
    snapshots.take(0)
    before = bits(list(model.parameters()))
    optimizer.add_param_group({"params": list(model[1].parameters()), "lr": 0.5})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    snapshots.restore(0)
    assert bits(list(model.parameters())) == before
    assert not optimizer.state
    assert optimizer.param_groups[1]["lr"] == 0.5
