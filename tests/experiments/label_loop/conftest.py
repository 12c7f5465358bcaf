import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.label_loop.config import Config
from shatter.cli.label.config import ProposeConfig
from tests.cli.label.conftest import config, model_folder  # noqa: F401 - fixtures
from tests.cli.label.projects import VOTES, write


@pytest.fixture
def loop_config(config: ProposeConfig, tmp_path: Path) -> Callable[..., Config]:  # noqa: F811
    """`loop_config(**changes)`: the flags of two rounds of two recorded votes."""

    def make(**changes) -> Config:
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(ProposeConfig)}
        votes = write(tmp_path / "votes.jsonl", VOTES)
        return Config(**{**fields, "pool": votes, "num_queries": 2, "num_rounds": 2, **changes})

    return make
