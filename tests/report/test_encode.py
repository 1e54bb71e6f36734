from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from foreshock.report import encode


@pytest.mark.parametrize("values", [[], [7], [7, 9], [5, 10, 15, 20]])
def test_evenly_spaced_steps_are_three_numbers(values: list[int]) -> None:
    first, stride, n = encode.steps(np.array(values, dtype=np.int64))
    assert [first + stride * i for i in range(n)] == values


@pytest.mark.parametrize(("values", "kind", "dtype"), [([1, 2, 4], "u4", "<u4"), ([0, 3, 2**40], "f8", "<f8")])
def test_uneven_steps_are_exact_offsets(values: list[int], kind: str, dtype: str) -> None:
    code = encode.steps(np.array(values, dtype=np.int64))
    offsets = np.frombuffer(base64.b64decode(code[kind]), dtype)
    assert [code["first"] + int(offset) for offset in offsets] == values


def test_floats_keep_nan_and_infinities() -> None:
    back = np.frombuffer(base64.b64decode(encode.floats([1.5, np.nan, np.inf, -np.inf])), "<f4")
    np.testing.assert_array_equal(back, [1.5, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_values_beyond_float32_are_sent_as_float64(value: float) -> None:
    mark, _, text = encode.floats([value, np.nan]).partition(":")
    assert mark == "8"
    assert np.frombuffer(base64.b64decode(text), "<f8")[0] == value


def test_quantised_tables_are_precise_and_flag_what_is_not_finite() -> None:
    table = np.array([[0.5, -2.0, np.nan], [np.inf, -np.inf, 1e-5]])
    code = encode.quantised(table)
    whole = np.frombuffer(base64.b64decode(code["i2"]), "<i2").reshape(2, 3)
    np.testing.assert_allclose(whole[0, :2] * code["unit"], [0.5, -2.0], atol=2.0 / 32000)
    assert whole[0, 2] == -32768
    assert whole[1, :2].tolist() == [32767, -32767]


def test_script_json_cannot_end_its_element() -> None:
    values = ["&", "\u2028", "😀", float("nan"), np.float64(2), np.int64(3), object]
    text = encode.script_json({"</script><!--": values})
    assert not set("<>&\u2028") & set(text)
    ((key, value),) = json.loads(text).items()
    assert key == "</script><!--"
    assert value[:6] == ["&", "\u2028", "😀", "NaN", 2.0, 3]
