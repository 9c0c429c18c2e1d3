"""The load client, where it can be built."""

from __future__ import annotations

import os

import pytest
from bench.client import LoadFailed, build


@pytest.fixture(scope="session", autouse=True)
def load_client() -> None:
    """Builds it once; where there is no compiler or no libnghttp2 these tests are skipped, but not in CI."""
    try:
        build()
    except LoadFailed as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}\nin CI the bench must not go untested")
        pytest.skip(str(error))
