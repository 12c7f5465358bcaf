"""Runs of `shatter finetune` and their files, for several tests."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter import models
from shatter.cli.finetune import run
from shatter.cli.finetune.checks import check
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.task import load_task


def pair(prompt: str, chosen: object, rejected: object) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def finetune(config: Config) -> dict:
    check(config)
    return run.finetune(config, load_task(config))


def history(config: Config) -> list[dict]:
    """Reads metrics.jsonl; fails on NaN and infinity, which JSON lacks."""
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]


def trained_params(config: Config):
    return models.load_pretrained(Path(config.output_dir) / "model")[1]


def assert_same(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
