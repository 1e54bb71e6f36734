from __future__ import annotations

import numpy as np
import pytest

from foreshock.errors import UsageError
from foreshock.run import ABSENT, absent, is_absent


def test_marker_has_the_documented_bits() -> None:
    assert absent(1, np.float32).view(np.uint32)[0] == 0x7FC0AB5E
    assert absent(1, np.float64).view(np.uint64)[0] == 0x7FF8AB5E00000000
    assert np.array([ABSENT]).view(np.uint64)[0] == 0x7FF8AB5E00000000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measured_nan_and_inf_are_not_absent(dtype: type) -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, 1.0], dtype)
    assert not is_absent(values).any()


@pytest.mark.parametrize(("stored", "cast"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_a_cast_to_the_other_width_keeps_absent_apart_from_nan(stored: type, cast: type) -> None:
    values = np.concatenate([absent(1, stored), np.array([np.nan, 1.0], stored)]).astype(cast)
    assert is_absent(values).tolist() == [True, False, False]


def test_shapes_are_kept_for_strided_and_empty_and_scalar_values() -> None:
    assert absent((2, 3), np.float32).shape == (2, 3)
    assert is_absent(absent((4, 6))[::2, ::3]).shape == (2, 2)
    assert is_absent(np.empty(0)).shape == (0,)
    assert bool(is_absent(ABSENT))
    assert bool(is_absent(absent((), np.float32)))


def test_integers_are_never_absent() -> None:
    assert is_absent([1, 2]).tolist() == [False, False]


@pytest.mark.parametrize("values", [np.zeros(2, np.float16), np.array(["a"])])
def test_other_types_are_refused(values: np.ndarray) -> None:
    with pytest.raises(UsageError, match="float32 or float64"):
        is_absent(values)
