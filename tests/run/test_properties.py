"""Whatever is written comes back: the store against a dictionary that does the same thing slowly."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshock.run import Event, Run, RunMemory, RunWriter, absent

from .small_run import bits, load_quietly

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
FLOATS = {np.float32: st.integers(0, 2**32 - 1), np.float64: st.integers(0, 2**64 - 1)}
EDGES = {
    np.float32: [0x7F800001, 0x7FC00001, 0xFFC00000, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x7FC0AB5E],
    np.float64: [0x7FF0000000000001, 0x7FF8000000000001, 0xFFF8 << 48, 0x7FF0 << 48, 0xFFF0 << 48, 1 << 63, 1],
}


@st.composite
def blocks(draw: st.DrawFn, kind: type, columns: int) -> np.ndarray:
    """Returns (k, columns) values of any bit pattern, the awkward ones often."""
    count = draw(st.integers(1, 4))
    one = st.one_of(FLOATS[kind], st.sampled_from(EDGES[kind]))
    patterns = draw(st.lists(one, min_size=count * columns, max_size=count * columns))
    unsigned = np.uint32 if kind is np.float32 else np.uint64
    return np.array(patterns, unsigned).view(kind).reshape(count, columns)


@st.composite
def appends(draw: st.DrawFn) -> tuple[tuple[str, ...], np.ndarray, int, int]:
    """Returns columns, values, how far the step moves before the append (back or forth), and the tensors' cadence."""
    columns = tuple(draw(st.sampled_from([("a",), ("a", "b"), ("b", "a", "ü/層"), ("c",), ()])))
    values = draw(blocks(draw(st.sampled_from([np.float32, np.float64])), len(columns)))
    return columns, values, draw(st.sampled_from([1, 1, 1, 3, 0, -2, -5])), draw(st.integers(1, 3))


@dataclass
class Model:
    """The slow, obvious store: step -> values, from which going back deletes."""

    step: dict[int, dict[str, float]] = field(default_factory=dict)
    tensors: dict[int, float] = field(default_factory=dict)

    def append(self, columns: tuple[str, ...], steps: list[int], values: np.ndarray) -> None:
        for table in (self.step, self.tensors):
            for gone in [step for step in table if step >= steps[0]]:
                del table[gone]
        gone = np.isin(values.view(np.uint32 if values.dtype == np.float32 else np.uint64), MARKERS[values.dtype.char])
        with np.errstate(invalid="ignore"):
            wide = values.astype(np.float64)
        for step, row, absences in zip(steps, wide, gone, strict=True):
            self.step[step] = {
                name: value for name, value, out in zip(columns, row.tolist(), absences, strict=True) if not out
            }


MARKERS = {
    "f": np.array([0x7FC0AB5E, 0x7FC55AF0], np.uint32),
    "d": np.array([0x7FF8AB5E00000000, 0x7FF8156BC0000000], np.uint64),
}


def same(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right and math.copysign(1, left) == math.copysign(1, right)


def agree(run: Run, model: Model) -> None:
    assert run.steps.tolist() == list(model.step)
    for record, (step, values) in zip(run.records(), model.step.items(), strict=True):
        assert record.step == step
        assert record.values.keys() == values.keys()
        assert all(same(record.values[name], value) for name, value in values.items())
    for name in set(run.columns) - {"grad_norm/t"}:
        steps, measured = run.measured(name)
        assert steps.tolist() == [step for step, values in model.step.items() if name in values]
        aligned = run[name]
        assert all(same(aligned[index], row.get(name, math.nan)) for index, row in enumerate(model.step.values()))
        assert len(measured) == len(steps)
    if "grad_norm/t" in run:
        steps, values = run.measured("grad_norm/t")
        assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == model.tensors


@settings(max_examples=60, deadline=None)
@given(script=st.lists(appends(), max_size=8), resume_at=st.integers(0, 8))
def test_directory_memory_and_model_agree(
    tmp_path_factory: pytest.TempPathFactory, script: list, resume_at: int
) -> None:
    path = tmp_path_factory.mktemp("model") / "a"
    model, memory, writer = Model(), RunMemory(), RunWriter(path).open()
    last = -1
    for number, (columns, values, move, cadence) in enumerate(script):
        if number == resume_at:
            writer.close()
            writer = RunWriter(path, resume=writer.id).open()
        first = max(0, last + move)
        steps = list(range(first, first + len(values)))
        some = [step for step in steps if step % cadence == 0]
        model.append(columns, steps, values)
        model.tensors |= {step: float(number) for step in some}
        for store in (memory, writer):
            store.append("step", columns, steps, np.zeros(len(steps)), values)
            store.append("tensors", ("grad_norm/t",), some, some, np.full((len(some), 1), number))
        last = steps[-1]
    writer.close()
    loaded = Run.load(path, strict=True)
    agree(loaded, model)
    agree(memory.run(), model)
    loaded.save(path.parent / "b")
    agree(Run.load(path.parent / "b", strict=True), model)
    low, high = max(0, last - 3), last
    kept = {step: row for step, row in model.step.items() if low <= step < high}
    agree(loaded.window(low, high), Model(kept, {s: v for s, v in model.tensors.items() if low <= s < high}))
    shutil.rmtree(path.parent)


@settings(max_examples=60, deadline=None)
@given(
    values=st.one_of(blocks(np.float32, 3), blocks(np.float64, 3)),
    names=st.lists(NAMES, min_size=3, max_size=3, unique=True),
)
def test_every_bit_pattern_and_name_is_stored_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("bits") / "a"
    with RunWriter(path, {"name": names[0]}) as writer:
        writer.append("step", tuple(names), range(len(values)), np.zeros(len(values)), values)
    run = Run.load(path, strict=True)
    assert run.columns == tuple(names)
    assert run.meta["name"] == names[0]
    assert bits(np.fromfile(path / "rank-0/step.bin", _record(values))["values"]) == bits(values)
    if values.dtype == np.float64:
        for index, name in enumerate(names):
            assert bits(run[name]) == bits(values[:, index])
    shutil.rmtree(path.parent)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([np.float32, np.float64]),
    records=st.integers(1, 30),
    columns=st.integers(0, 5),
    place=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_changed_byte_is_found_in_its_record(
    tmp_path_factory: pytest.TempPathFactory, size: type, records: int, columns: int, place: float, change: int,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("byte") / "a"
    values = np.random.default_rng(seed).normal(size=(records, columns)).astype(size)
    with RunWriter(path) as writer:
        writer.append("step", tuple("abcde"[:columns]), range(records), np.zeros(records), values)
    file = path / "rank-0/step.bin"
    content = bytearray(file.read_bytes())
    width = len(content) // records
    offset = int(place * len(content))
    content[offset] ^= change
    file.write_bytes(content)
    run = load_quietly(path)
    assert run.steps.tolist() == list(range(offset // width))
    assert f"{file} is damaged in the record at byte {offset // width * width}" in str(run.problems[0])
    shutil.rmtree(path.parent)


@settings(max_examples=60, deadline=None)
@given(
    height=st.floats(), severity=st.floats(), signal=NAMES,
    data=st.dictionaries(NAMES, st.one_of(st.none(), st.integers(), st.floats(), NAMES, st.lists(st.floats()))),
)
def test_events_round_trip(
    tmp_path_factory: pytest.TempPathFactory, height: float, severity: float, signal: str, data: dict
) -> None:
    path = tmp_path_factory.mktemp("events") / "a"
    event = Event("spike", 3, 2, 3, None, height, severity, signal, data)
    with RunWriter(path) as writer:
        writer.event(event)
    assert [str(found) for found in Run.load(path, strict=True).events] == [str(event)]
    shutil.rmtree(path.parent)


def test_an_absent_value_differs_from_every_nan_a_computation_makes() -> None:
    with np.errstate(all="ignore"):
        made = np.array([np.inf - np.inf, np.float64(0) / 0, np.sqrt(np.float64(-1)), np.log(np.float64(-1))])
    assert not set(bits(made)) & set(bits(absent(1)))


def _record(values: np.ndarray) -> list[tuple]:
    return [("step", "<i8"), ("time", "<f8"), ("values", values.dtype, values.shape[1]), ("crc", "<u4")]
