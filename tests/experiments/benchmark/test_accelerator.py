import csv
import dataclasses
import json

import jax
import pytest

from experiments.benchmark import accelerator, config, finetune, run
from shatter import models

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = accelerator.PLANS["tiny"]


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_operations_are_those_that_the_compiler_counts(kv_heads: int | None):
    sizes = dataclasses.replace(
        accelerator.TINY, width=64, length=32, vocab_size=97, num_kv_heads=kv_heads, half=False
    )
    params = finetune.init(sizes, 0)
    lm = models.transformer(finetune.transformer_config(sizes))
    tokens = jax.ShapeDtypeStruct((2 * sizes.num_pairs, sizes.length), int)
    cost = jax.jit(lm.apply).lower(params, tokens).cost_analysis()
    # A backward pass takes two products for each of the forward pass.
    assert accelerator.model_flops(sizes, params) == pytest.approx(3 * cost["flops"], rel=0.1)


def test_the_section_runs_at_a_tiny_size(tmp_path):
    run.experiment(
        config.Config(
            sections=("accelerator",),
            accelerator_size="tiny",
            run_dir=str(tmp_path / "run"),
            repeats=1,
            num_rounds=1,
            num_members=2,
        )
    )
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    parts = accelerator.parts(TINY, config.sizes(config.Config(num_rounds=1), "tabular"), 0)
    assert list(dict.fromkeys(row["group"] for row in rows)) == [part[0] for part in parts]
    assert all(row["seconds_a_unit"] > 0 for row in rows)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        names = {row["arm"] for row in csv.DictReader(file)}
    assert {"adapters: 64", "3 seeds in one call", "jax", "shatter"} <= names


def test_the_full_size_is_that_of_the_real_models():
    full = accelerator.PLANS["full"].models
    for name, weights in (("GPT-2 small", 124_439_808), ("SmolLM2-135M", 134_515_008)):
        lm = models.transformer(finetune.transformer_config(full[name]))
        shapes = jax.eval_shape(lm.init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == weights
