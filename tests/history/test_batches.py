"""A batch is given back as it was, or not at all."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from foreshock import UsageError
from foreshock.history.batches import SMALL, keep

Pair = namedtuple("Pair", "x y")
LARGE = SMALL // 4 + 1000


@dataclass
class Graph:
    nodes: torch.Tensor
    label: str


class Encoding(UserDict):
    """As transformers' BatchEncoding."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


class Output(OrderedDict):
    """As transformers' ModelOutput."""


X = torch.arange(6.0).reshape(2, 3)

BATCHES = {
    "tensor": X,
    "tuple": (X, 3, "three"),
    "nested": {"a": [X, {"b": (X.int(), None)}], 5: X.bool()},
    "named": Pair(X, X + 1),
    "packed": torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    "encoding": Encoding(input_ids=X, mask=X > 1),
    "output": Output(a=X),
    "object": Graph(X, "g"),
    "array": (np.arange(5), np.array(["a", None], dtype=object)),
    "strided": torch.arange(12.0).reshape(3, 4).t(),
    "sparse": torch.eye(3).to_sparse(),
    "half": X.bfloat16(),
    "int": 17,
}


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value.to_dense() if value.is_sparse else value
    elif isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (dict, UserDict)):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, Graph):
        yield value.nodes


def same(one, other):
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else (a == b).all() for a, b in pairs)


@pytest.mark.parametrize("copying", [False, True])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_comes_back_in_containers_and_tensors_of_its_own(kind, copying):
    batch = BATCHES[kind]
    kept = keep(batch, copying=copying)
    first, second = kept.give(3), kept.give(3)
    assert type(first) is type(batch)
    assert same(first, batch)
    for one in tensors(first):
        one.fill(0) if isinstance(one, np.ndarray) else one.zero_()
    assert same(second, batch)
    assert same(kept.give(3), batch)


def test_what_is_no_tensor_stays_what_it_is():
    kept = keep({"a": (1, "x", None), "graph": Graph(X, "g"), "call": len})
    assert kept.give(0)["a"] == (1, "x", None)
    assert kept.give(0)["graph"].label == "g"
    assert kept.give(0)["call"] is len
    assert kept.nbytes == X.nbytes


def test_taking_something_out_of_the_batch_afterwards_changes_nothing():
    batch = Encoding(input_ids=X, labels=X)
    kept = keep(batch)
    batch.pop("labels")
    assert set(kept.give(0).data) == {"input_ids", "labels"}


def test_small_tensors_are_copied_and_large_ones_are_not():
    small, large = torch.zeros(10), torch.zeros(LARGE)
    kept = keep((small, large))
    small += 1
    assert kept.leaves[1].value.data_ptr() == large.data_ptr()
    assert kept.give(0)[0].sum() == 0


@pytest.mark.parametrize("how", ["torch", "numpy", "array"])
def test_a_large_batch_that_was_overwritten_is_an_error_that_says_so(how):
    buffer = np.zeros(LARGE, dtype=np.float32)
    batch = buffer if how == "array" else torch.from_numpy(buffer)
    kept, copied = keep({"x": batch}), keep({"x": batch}, copying=True)
    assert kept.give(7)["x"].sum() == 0
    if how == "torch":
        batch[3] = 1  # one element of many: torch counts it
    else:
        buffer[:] = 1  # behind torch's back: a sample tells
    with pytest.raises(UsageError, match=r"batch of step 7 was overwritten in place.*copy=True"):
        kept.give(7)
    assert copied.give(7)["x"].sum() == 0


def test_tensors_of_data_loaders_workers_are_copied():
    shared = torch.zeros(LARGE).share_memory_()
    kept = keep(shared)
    shared += 1
    assert not kept.leaves[0].value.is_shared()
    assert kept.give(0).sum() == 0


def test_no_graph_is_held_and_gradients_are_asked_for_again():
    leaf = torch.ones(3, requires_grad=True)
    kept = keep((leaf, leaf * 2))
    assert all(not each.value.requires_grad for each in kept.leaves)
    given = kept.give(0)
    assert given[0].requires_grad
    assert given[1].is_leaf
