from __future__ import annotations

import doctest
import importlib
import io
import itertools
import random
from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from foreshock.errors import ForeshockWarning, UsageError
from foreshock.requeue import Requeue

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    text: str


def settled(data, *, refuse=(), how="requeue", limit=1):
    """Goes through the data, refusing the ids in `refuse` up to `limit` times each; returns the ids and the batches."""
    ids, batches = [], []
    for batch in data:
        ids.append(data.current[0])
        batches.append(batch)
        again = ids[-1] in refuse and data.tries(data.current) < limit
        data.settle(how if again else "accepted")
    return ids, batches


def saved(state):
    """The state as it comes out of a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Noisy(Dataset):
    """Items that depend on the random state of the process that reads them."""

    def __init__(self, n=24):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.tensor([i, torch.rand(()), random.random(), np.random.rand()], dtype=torch.float64)


class Endless(IterableDataset):
    def __iter__(self):
        for i in itertools.count():
            yield torch.tensor([i, torch.rand(())], dtype=torch.float64)


class Shuffled:
    """A loader of one's own with a generator of its own."""

    def __init__(self, kind):
        self.rng = {"torch": torch.Generator().manual_seed(3), "numpy": np.random.default_rng(3),
                    "old": np.random.RandomState(3), "random": random.Random(3), "global": None}[kind]

    def order(self):
        if self.rng is None:
            return random.sample(range(9), 9)
        if isinstance(self.rng, torch.Generator):
            return torch.randperm(9, generator=self.rng).tolist()
        if isinstance(self.rng, random.Random):
            return self.rng.sample(range(9), 9)
        return self.rng.permutation(9).tolist()

    def __iter__(self):
        yield from (torch.tensor(i) for i in self.order())


class Placed:
    """A loader that keeps its place itself, and would never go back."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        torch.rand(())  # as the seed of a loader's workers
        return self.rest()

    def rest(self):
        while self.at < 10:
            self.at += 1
            yield torch.tensor(self.at - 1)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_data_pass_through_untouched_when_nothing_is_refused():
    batches = [torch.zeros(2), {"x": torch.ones(1)}, (torch.ones(2), "a"), None, 7]
    for _ in range(2):
        assert all(a is b for a, b in zip(Requeue(batches), batches, strict=True))
    data = Requeue(batches)
    assert settled(data)[0] == [0, 1, 2, 3, 4]
    assert settled(data)[0] == [5, 6, 7, 8, 9]
    assert data.epoch == 2
    assert data.waiting == ()


def test_wrapping_leaves_a_shuffled_loader_and_the_global_streams_as_they_are():
    def run(wrap):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
        data = wrap(loader)
        return [batch for _ in range(2) for batch in data], torch.rand(3)

    (plain, after), (wrapped, after_wrapped) = run(lambda loader: loader), run(Requeue)
    assert same(plain, wrapped)
    assert torch.equal(after, after_wrapped)


def test_the_loader_shows_through():
    loader = DataLoader(Noisy(), batch_size=4)
    data = Requeue(loader)
    assert len(data) == 6
    assert data.batch_size == 4
    assert data.dataset is loader.dataset
    with pytest.raises(AttributeError, match="colour"):
        _ = data.colour
    with pytest.raises(TypeError):
        len(Requeue(iter([1])))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("horizon", [1, 5, 1000])
def test_a_requeued_batch_comes_back_within_the_horizon_and_the_epoch(seed, horizon):
    n = 60
    data = Requeue([torch.tensor(i) for i in range(n)], seed=seed, horizon=horizon)
    refuse = {0, 17, 30, 58, 59}
    ids, batches = settled(data, refuse=refuse)
    assert sorted(ids) == sorted([*range(n), *refuse])
    assert [int(b) for b in batches] == ids
    assert [i for i in ids if ids.count(i) == 1] == [i for i in range(n) if i not in refuse]
    for i in refuse - {58, 59}:
        first, second = (k for k, found in enumerate(ids) if found == i)
        assert 1 <= second - first - 1 <= horizon + len(refuse)


def test_positions_are_spread_over_the_horizon_and_depend_on_the_seed():
    def distances(seed):
        data = Requeue(range(9_000), seed=seed, horizon=50)
        places = {}
        for place, number in enumerate(settled(data, refuse=set(range(0, 8_700, 30)))[0]):
            places.setdefault(number, []).append(place)
        return [pair[1] - pair[0] for pair in places.values() if len(pair) == 2]

    spread = distances(0)
    assert len(spread) == 290
    assert min(spread) >= 2
    assert max(spread) <= 56  # others that came back are counted
    counts = np.histogram(spread, bins=5, range=(1, 56))[0]
    assert counts.min() > 30
    assert distances(0) == spread != distances(1)


def test_a_retried_batch_comes_next_and_tries_are_counted():
    data = Requeue(range(4))
    ids, seen = [], []
    for _ in data:
        ids += data.current
        seen.append(data.tries(data.current))
        data.settle("retry" if ids[-1] == 1 and seen[-1] < 3 else "accepted")
    assert ids == [0, 1, 1, 1, 1, 2, 3]
    assert seen == [0, 0, 1, 2, 3, 0, 0]
    assert data.tries([1]) == 0  # it is through


@pytest.mark.parametrize("how", ["quarantine", "drop"])
def test_what_is_put_away_never_comes_again(how):
    data = Requeue(range(5))
    assert settled(data, refuse={2}, how=how)[0] == [0, 1, 2, 3, 4]
    assert data.quarantined == ([2] if how == "quarantine" else [])
    assert data.waiting == ()


def test_a_batch_let_through_with_a_smaller_update_is_used_and_counts_as_tried():
    data = Requeue(range(3000), horizon=1)
    ids = []
    for _ in data:
        ids += data.current
        data.settle("scaled")
    assert ids == list(range(3000))
    assert data.tries([2999]) == 1
    assert sum(data.tries([i]) for i in ids) <= 1000


def test_micro_batches_of_an_attempt_are_settled_together_and_retried_in_order():
    data, attempts = Requeue([torch.tensor(i) for i in range(12)]), []
    for batch in data:
        assert int(batch) == data.current[-1]
        if len(data.current) == 3:
            attempts.append(data.current)
            data.settle("retry" if attempts.count((3, 4, 5)) == 1 and attempts[-1] == (3, 4, 5) else "accepted")
    assert attempts == [(0, 1, 2), (3, 4, 5), (3, 4, 5), (6, 7, 8), (9, 10, 11)]
    data = Requeue(range(12), horizon=4)
    ids = []
    for _ in data:
        ids += data.current[-1:]
        if len(data.current) == 3:
            data.settle("requeue" if data.current == (3, 4, 5) else "accepted")
    assert [ids.count(i) for i in range(12)] == [2 if i in (3, 4, 5) else 1 for i in range(12)]


def test_an_epoch_ends_even_if_everything_is_refused_and_nothing_is_lost():
    data = Requeue([torch.tensor(i) for i in range(6)])
    for epoch in range(3):
        ids = settled(data, refuse=set(range(99)), limit=10**9)[0]
        assert len(ids) < 150
        assert set(data.waiting) == set(range(6 * (epoch + 1)))
    assert sorted(i for i in set(settled(data)[0])) == list(range(24))
    assert data.waiting == ()


def test_data_without_a_length_deliver_what_waits_before_they_end():
    ids, _ = settled(Requeue(i for i in range(20)), refuse={3, 19})
    assert sorted(ids) == sorted([*range(20), 3, 19])


def test_endless_data_go_on():
    data = Requeue(DataLoader(Endless(), batch_size=2), horizon=3)
    ids = []
    for _ in data:
        ids += data.current
        data.settle("requeue" if ids.count(ids[-1]) == 1 and ids[-1] % 4 == 0 else "accepted")
        if len(ids) == 50:
            break
    assert ids.count(0) == ids.count(4) == ids.count(8) == 2
    stream = Requeue(itertools.count())
    assert [next(iter(stream)) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_an_epoch_that_is_broken_off_keeps_what_waits_and_forgets_what_was_not_settled():
    data = Requeue(range(10), horizon=1000)
    for value in data:
        if value == 3:
            break
        data.settle("requeue" if value == 2 else "accepted")
    assert data.current == (3,)
    ids, batches = settled(data)
    assert sorted(ids) == [2, *range(4, 14)]
    assert sorted(batches) == sorted([2, *range(10)])
    assert data.epoch == 2


def test_a_loop_that_never_settles_holds_few_batches_and_saves_none():
    data = Requeue([torch.zeros(1)] * 1000)
    assert sum(1 for _ in data) == 1000
    assert len(data.current) < 200
    state = data.state_dict()
    assert state["again"] == []
    resumed = Requeue([torch.zeros(1)] * 1000)
    resumed.load_state_dict(state)
    assert sum(1 for _ in resumed) == 1000


def test_two_loops_at_once_are_refused():
    data = Requeue(range(5))
    first = iter(data)
    next(first)
    next(iter(data))
    with pytest.raises(UsageError, match="another loop"):
        next(first)


def test_what_comes_back_is_what_it_was_although_the_loop_used_it_up():
    data = Requeue([{"x": torch.ones(2), "y": [torch.zeros(1)]}, {"x": torch.ones(2), "y": []}], horizon=1)
    came = 0
    for batch in data:
        if data.current == (0,):
            came += 1
            batch.pop("x")
            batch["y"].append(1)
        data.settle("retry" if data.current == (0,) and data.tries((0,)) < 2 else "accepted")
    assert came == 3
    source = torch.zeros(3)
    data = Requeue([source])
    batches = iter(data)
    first = next(batches)
    first += 1
    with pytest.warns(ForeshockWarning, match="batch 0 was changed in place"):
        data.settle("retry")
    second = next(batches)
    second += 1
    assert source.tolist() == [1.0] * 3  # what comes back is a copy
    data.settle("retry")
    assert next(batches).tolist() == [1.0] * 3


KINDS = {
    "nested": lambda i: (torch.tensor([i, 0]), [{"a": torch.tensor(float(i)), 3: "text"}, None, True, 1.5, b"x"]),
    "fields": lambda i: Pair(torch.full((2,), i), np.arange(3) + i),
    "mapping": lambda i: UserDict(ids=torch.full((2,), i), n=np.float32(i)),
    "dataclass": lambda i: Sample(torch.full((2,), i, dtype=torch.bfloat16), f"sample {i}"),
    "numpy": lambda i: np.full((2, 2), i),
}


@pytest.mark.parametrize("kind", KINDS)
def test_waiting_batches_of_any_kind_come_back_after_a_resume(kind):
    rows = [KINDS[kind](i) for i in range(8)]
    data = Requeue(rows, horizon=3)
    for _ in data:
        data.settle("requeue" if data.current[0] < 3 else "accepted")
        if data.current == () and data.waiting[:3] == (0, 1, 2):
            break
    resumed = Requeue(rows, horizon=3)
    resumed.load_state_dict(saved(data.state_dict()))
    back = {}
    for batch in resumed:
        back[resumed.current[0]] = batch
        resumed.settle("accepted")
    for i in range(3):
        assert type(back[i]) is type(rows[i])
        assert repr(back[i]) == repr(rows[i])


def test_a_slice_brings_only_itself_into_the_state():
    rows = torch.zeros(100_000).split(10)
    data = Requeue(rows)
    for _ in itertools.islice(data, 5):
        data.settle("requeue")
    file = io.BytesIO()
    torch.save(data.state_dict(), file)
    assert len(file.getvalue()) < 40_000


def test_what_only_pickle_could_write_is_left_out_with_a_warning():
    data = Requeue([object(), torch.zeros(1)])
    for _ in data:
        data.settle("requeue")
        break
    with pytest.warns(ForeshockWarning, match=r"batch 0, .* not saved: a builtins.object"):
        assert saved(data.state_dict())["waiting"] == []


def test_a_state_names_no_class_that_is_not_imported_or_no_container():
    data = Requeue([Pair(1, 2), 3])
    next(iter(data))
    data.settle("retry")
    for name in ("subprocess_that_is_not:Popen", "io:BytesIO", "builtins:eval"):
        state = data.state_dict()
        state["again"][0]["batch"]["class"] = name
        with pytest.raises(UsageError, match=r"not known here|which it is not"):
            Requeue([Pair(1, 2), 3]).load_state_dict(state)


def loader(kind):
    if kind == "list":
        return [torch.tensor(i) for i in range(9)]
    if kind in ("torch", "numpy", "old", "random", "global"):
        return Shuffled(kind)
    if kind == "generator":
        return DataLoader(Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(8))
    if kind == "placed":
        return Placed()
    if kind == "distributed":
        return DataLoader(Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1))
    return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=int(kind))


def train(data, stop=None, state=None, epochs=3):
    """Goes through the epochs in a process of its own: global streams of its own, drawn from at every step.

    Returns what was seen and, where it stopped after `stop` attempts, its checkpoint.
    """
    if state is None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
    else:
        data.load_state_dict(state["data"])
        torch.set_rng_state(state["torch"])
        random.setstate(state["random"])
        np.random.set_state(state["numpy"])
    seen = []
    for epoch in range(data.epoch, epochs):
        if isinstance(getattr(data, "sampler", None), DistributedSampler) and state is None:
            data.sampler.set_epoch(epoch + 5)
        state = None
        for batch in data:
            number, tries = data.current[0], data.tries(data.current)
            bad = number % 4 == 1 and tries < (number % 3 + 1)
            data.settle(("requeue" if number % 8 == 1 else "retry") if bad else "accepted")
            seen.append((number, tries, batch, torch.rand(()).item(), random.random(), np.random.rand()))
            if len(seen) == stop:
                kept = {"data": saved(data.state_dict()), "torch": torch.get_rng_state()}
                return seen, kept | {"random": random.getstate(), "numpy": np.random.get_state()}
    return seen, None


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x[:2] == y[:2]
        assert torch.equal(x[2], y[2])
        assert x[3:] == y[3:]


@pytest.mark.parametrize(
    "kind", ["list", "0", "generator", "distributed", "torch", "numpy", "old", "random", "global", "placed"]
)
def test_resumed_is_never_stopped_wherever_it_is_cut(kind):
    whole, _ = train(Requeue(loader(kind), horizon=4))
    assert len({i for i, *_ in whole}) < len(whole)
    for stop in range(1, len(whole), 1 if kind in ("0", "torch") else 3):
        first, state = train(Requeue(loader(kind), horizon=4), stop)
        second, _ = train(Requeue(loader(kind), horizon=4), state=state)
        assert_same(first + second, whole)


def test_resumed_is_never_stopped_with_worker_processes():
    whole, _ = train(Requeue(loader("2"), horizon=4), epochs=2)
    first, state = train(Requeue(loader("2"), horizon=4), 11, epochs=2)
    second, _ = train(Requeue(loader("2"), horizon=4), state=state, epochs=2)
    assert_same(first + second, whole)


def test_resuming_twice_is_resuming_once():
    whole, _ = train(Requeue(loader("0")))
    first, state = train(Requeue(loader("0")), 9)
    second, state = train(Requeue(loader("0")), 5, state)
    third, _ = train(Requeue(loader("0")), state=state)
    assert_same(first + second + third, whole)


def test_a_state_loaded_within_the_loop_takes_it_back():
    data, seen, state = Requeue(DataLoader(Noisy(), batch_size=4, shuffle=True)), [], None
    for batch in data:
        seen.append((data.current, batch[:, 0]))
        data.settle("accepted")
        if len(seen) == 2:
            state = data.state_dict()
        if len(seen) == 5:
            data.load_state_dict(state)
    assert [ids for ids, _ in seen] == [(0,), (1,), (2,), (3,), (4,), (2,), (3,), (4,), (5,)]
    assert same([x for _, x in seen[2:5]], [x for _, x in seen[5:8]])


def test_batches_that_are_not_settled_when_the_state_is_saved_come_again_first():
    rows = [torch.tensor(i) for i in range(8)]

    def rest(data):
        ids = []
        for _ in data:
            ids += data.current
            data.settle("requeue" if ids.count(5) == 1 and ids[-1] == 5 else "accepted")
        return ids

    def begun():
        data = Requeue(rows)
        stream = iter(data)
        next(stream)
        data.settle("accepted")
        return data, stream

    data, stream = begun()
    next(stream), next(stream)
    assert data.current == (1, 2)
    resumed = Requeue(rows)
    resumed.load_state_dict(saved(data.state_dict()))
    ids = rest(resumed)
    assert ids[:2] == [1, 2]
    assert resumed.tries([1]) == 0
    data, _ = begun()
    calm = Requeue(rows)
    calm.load_state_dict(data.state_dict())
    assert rest(calm) == ids


def test_a_generator_cannot_be_resumed_and_the_error_says_what_can():
    data = Requeue(i for i in range(9))
    for _ in itertools.islice(data, 3):
        data.settle("accepted")
    state = data.state_dict()
    data.load_state_dict(state)  # it is where it was
    with pytest.raises(UsageError, match=r"3 batches had been taken .* 0 now, and a generator .* wrap what makes it"):
        Requeue(i for i in range(9)).load_state_dict(state)


def test_other_data_than_those_of_the_state_are_refused():
    data = Requeue(range(9))
    for _ in itertools.islice(data, 7):
        data.settle("accepted")
    resumed = Requeue(range(5))
    resumed.load_state_dict(data.state_dict())
    with pytest.raises(UsageError, match=r"7 batches .* only 5; give the same data"):
        next(iter(resumed))
    placed = Requeue(Placed())
    next(iter(placed))
    resumed.load_state_dict(placed.state_dict())
    with pytest.raises(UsageError, match="kept their place themselves"):
        next(iter(resumed))


def test_workers_that_live_on_are_not_said_to_be_resumed_bit_for_bit():
    data = Requeue(Shuffled("torch"))
    data.data.persistent_workers = True  # as a loader has it
    settled(data)
    for _ in itertools.islice(data, 2):
        data.settle("accepted")
    resumed = Requeue(Shuffled("torch"))
    resumed.data.persistent_workers = True
    resumed.load_state_dict(data.state_dict())
    with pytest.warns(ForeshockWarning, match="persistent_workers=True"):
        next(iter(resumed))


def test_ranks_that_settle_alike_stay_in_step():
    def rank(r):
        sampler = DistributedSampler(Noisy(), num_replicas=2, rank=r, shuffle=True)
        data = Requeue(DataLoader(Noisy(), batch_size=2, sampler=sampler), seed=4, horizon=3)
        return [(number, tries) for number, tries, *_ in train(data)[0]]

    assert rank(0) == rank(1)
    assert any(tries for _, tries in rank(0))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Requeue(7), "data: must be an iterable of batches, got int"),
        (lambda: Requeue([], horizon=0), "horizon: must be a whole number of at least 1, got 0"),
        (lambda: Requeue([]).settle("skip"), "outcome: must be one of accepted, .*, got 'skip'"),
        (lambda: Requeue([]).load_state_dict({"version": 9}), "not the state of a Requeue of version 1: found 9"),
        (lambda: Requeue([]).load_state_dict(None), "found 'NoneType'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_argument_named(wrong, says):
    with pytest.raises(UsageError, match=says):
        wrong()


@pytest.mark.parametrize("name", ["wrapper", "plain"])
def test_the_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"foreshock.requeue.{name}"))
    assert result.attempted
    assert not result.failed
