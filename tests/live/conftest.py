from __future__ import annotations

import pytest

from foreshock.probes import native


@pytest.fixture(params=["compiled", "torch"])
def each_sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled sweep and with the torch path."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the compiled sweep was not built: no C compiler when foreshock was installed")
    return str(request.param)
