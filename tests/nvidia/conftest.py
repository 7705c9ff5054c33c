"""What each version's module is, asked once."""

from pathlib import Path
from typing import Any

import pytest

from tests.nvidia.bindings import RTX, VERSIONS, ask


@pytest.fixture(scope="session", params=[*VERSIONS, RTX])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the probe finds in a version."""
    cache = request.config.cache
    assert cache is not None
    return {"name": request.param, **ask(request.param, Path(cache.mkdir("tensorrt")))}
