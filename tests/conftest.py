"""What every test gets: fake devices, no implicit rank promotion, float64 and data on request."""

import os
from collections.abc import Iterator
from pathlib import Path

# Eight CPU devices for the sharding tests. jax reads the flag when it first asks for devices; a
# number that the user has set stays.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# A forgotten axis is an error, not a silent [N, N] table.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for the length of one test: identities are exact to about 1e-12 in it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that SHATTER_DATA_DIR names; the test is skipped without it."""
    folder = os.environ.get("SHATTER_DATA_DIR")
    if not folder:
        pytest.skip("SHATTER_DATA_DIR is not set: it names the folder with the real data")
    if not Path(folder).is_dir():
        pytest.skip(f"SHATTER_DATA_DIR is {folder!r}, which is not a folder")
    return Path(folder)
