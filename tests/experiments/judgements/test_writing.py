"""The table of what fine-tuned models still know of writing."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.judgements import writing
from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import run
from shatter.cli.finetune.config import Config as RunConfig
from tests.cli.finetune.runs import pair, write

pytestmark = pytest.mark.slow  # a whole run


def perplexity(folder: Path, text: str) -> float:
    """Returns the perplexity of a text between BOS and EOS, token by token."""
    config, params, tokenizer = models.load_pretrained(folder)
    tokens = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    logits = models.transformer(config).apply(params, jnp.array([tokens]))[0]
    log_probs = jax.nn.log_softmax(logits)[jnp.arange(len(tokens) - 1), jnp.array(tokens[1:])]
    return float(np.exp(-np.mean(log_probs)))


def test_perplexities_before_and_after(make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    make_model(tmp_path / "tiny", 1)
    run.experiment(
        RunConfig(
            model_name_or_path=str(tmp_path / "tiny"),
            dataset_name=write(tmp_path / "pairs.jsonl", [pair("a", "b", "c")] * 4),
            output_dir=str(tmp_path / "run"),
            utility="tilt",
            learning_rate=1e-2,
            max_steps=2,
            max_length=16,
            kl_samples=4,
            kl_length=4,
            num_generations=0,
            mesh="data=1",
        )
    )
    (tmp_path / "text.txt").write_text("abc\n\n\n ba \n")
    base = str(tmp_path / "tiny")
    config = writing.Config(
        (str(tmp_path / "run"),), str(tmp_path / "text.txt"), base, max_length=16
    )
    capsys.readouterr()
    writing.experiment(config)
    lines = [re.findall(r"[-\w./]+", line) for line in capsys.readouterr().out.splitlines()]
    rows = {
        line[0]: [float(x) for x in line[1:]]
        for line in lines
        if len(line) > 2 and line[-1][0].isdigit()
    }
    with pytest.raises(UsageError, match="--max_length must be at most 32, the model's positions"):
        writing.experiment(dataclasses.replace(config, max_length=33))
    before, after = rows["pretrained"], rows[str(tmp_path / "run")]
    for folder, found in ((tmp_path / "tiny", before[0]), (tmp_path / "run" / "model", after[2])):
        each = np.log([perplexity(folder, text) for text in ("abc", "ba")])
        np.testing.assert_allclose(found, np.exp(each @ [4 / 7, 3 / 7]), rtol=1e-3)
    assert before[1] < after[3]  # of its own samples the pretrained model knows more


def test_what_is_missing_is_named(tmp_path):
    for changes, message in (
        ({}, "--runs is required"),
        ({"runs": ("run",)}, "--text is required"),
    ):
        with pytest.raises(UsageError, match=message):
            writing.experiment(writing.Config(**changes))
    (tmp_path / "empty.txt").write_text("\n\n")
    for name, message in (
        ("no.txt", "cannot be read"),
        ("empty.txt", "expected texts, found none"),
    ):
        with pytest.raises(UsageError, match=message):
            writing._pieces(writing.Config(("run",), str(tmp_path / name)))
