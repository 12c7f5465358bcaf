"""Rewards: functions and reward models, and what is said where they fail."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import learning, rewards
from shatter.cli.finetune.batches import StepBatch
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.pretrained import Pretrained, load_model
from shatter.cli.finetune.reward_models import open_rewards
from shatter.cli.finetune.rewards import Completion, score_all

COMPLETIONS = [
    Completion("ab", "cd", "p.jsonl:1", [1, 3, 4, 5, 6, 2], 3, True),
    Completion("ab", "aa", "p.jsonl:1", [1, 3, 4, 3, 3], 3, False),
    Completion("b", "a", "p.jsonl:2", [1, 4, 3, 2], 2, True),
]
MODULE = """
def count(prompts, completions):
    return [text.count("a") for text in completions]

def length(prompts, completions):
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]

def fails(prompts, completions):
    if "aa" in completions:
        raise KeyError("aa")
    return [0.0] * len(completions)

def nothing(prompts, completions):
    return [0.5, float("nan"), 1.0]

def words(prompts, completions):
    return ["good"] * len(completions)

def few(prompts, completions):
    return [1.0]

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of a module in the present folder."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return "own_rewards"


@pytest.fixture
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)


pytestmark = pytest.mark.usefixtures("fresh_modules")


def opened(*names: str, weights: tuple[float, ...] = ()) -> tuple[rewards.Reward, ...]:
    config = Config(objective="rloo", reward_function=names, reward_weights=weights)
    return open_rewards(config, None)  # type: ignore[arg-type]


def test_rewards_are_weighted_and_summed(module: str):
    found = opened(f"{module}:count", f"{module}:length", weights=(2.0, 0.5))
    total, each = score_all(found, COMPLETIONS)
    np.testing.assert_array_equal(each[f"{module}:count"], [0, 2, 1])
    np.testing.assert_array_equal(each[f"{module}:length"], [4, 4, 2])
    np.testing.assert_array_equal(total, [2, 6, 3])
    assert found[0].digest != found[1].digest


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"fails raised KeyError: 'aa', for the prompt 'ab' \(p\.jsonl:1\) and the comp"),
        ("fails", r"the completion 'aa': mend the function, and the same command goes on"),
        ("nothing", r"expected a finite number, found nan, for the prompt 'ab' \(p\.jsonl:1\) and"),
        ("words", r"expected a finite number, found 'good', for .* the completion 'cd'"),
        ("few", r"expected 3 numbers, one for each completion, found 1: \[1\.0\]; the first was "),
    ],
)
def test_a_reward_that_fails_is_named_with_the_completion(module: str, function: str, message: str):
    (reward,) = opened(f"{module}:{function}")
    with pytest.raises(UsageError, match=message):
        score_all([reward], COMPLETIONS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_rewards", "expected MODULE:FUNCTION, found 'own_rewards': pass --reward_function="),
        ("nowhere:count", r"nowhere cannot be imported from .*ModuleNotFoundError: No module"),
        ("own_rewards:absent", "expected a function absent in own_rewards, found no such name"),
        ("own_rewards:constant", "expected a function constant in own_rewards, found 3: pass"),
    ],
)
def test_a_function_that_cannot_be_imported_is_named(module: str, name: str, message: str):
    with pytest.raises(UsageError, match=message):
        opened(name)


def reward_folder(source: Path, folder: Path, width: int = 8) -> str:
    """Writes a reward model: another random model with a random head."""
    config, params, tokenizer = models.load_pretrained(source)
    params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    models.save_pretrained(folder, config, params, tokenizer, like=source)
    head = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    save_file({"score.weight": head}, folder / "reward_head.safetensors")
    return str(folder)


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    return Config(
        model_name_or_path=str(model_folder),
        objective="rloo",
        max_length=16,
        max_completion_length=4,
        per_device_eval_batch_size=2,
        reward_model=reward_folder(model_folder, tmp_path / "judge"),
        output_dir=str(tmp_path / "run"),
    )


@pytest.mark.slow
def test_a_reward_model_scores_as_in_its_training(config: Config):
    """Its documents end with EOS, also where a completion was cut at its largest length."""
    (reward,) = open_rewards(config, load_model(config))
    judge, params, _ = models.load_pretrained(config.reward_model)
    (head,) = models_head(config)
    lm = models.transformer(judge)
    model = Pretrained(judge, params, None, lm, None)  # type: ignore[arg-type]
    tokens = np.zeros((3, 1, 8), np.int32)
    documents = [c.tokens if c.finished else [*c.tokens, 2] for c in COMPLETIONS]
    for row, ids in zip(tokens[:, 0], documents, strict=True):
        row[: len(ids)] = ids
    lengths = np.asarray([len(ids) for ids in documents])
    valid = np.arange(8) < lengths[:, None, None]
    batch = StepBatch(tokens, valid, valid, *(None,) * 2, np.zeros((3, 1)), None)  # type: ignore[arg-type]
    expected = learning.score(model, params, jnp.asarray(head), batch).rewards[:, 0]
    np.testing.assert_allclose(reward.score(COMPLETIONS), expected, rtol=1e-5)
    assert np.std(expected) > 0.01
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    models.save_pretrained(config.reward_model, judge, other, like=config.reward_model)
    (changed,) = open_rewards(config, load_model(config))
    assert changed.digest != reward.digest


def models_head(config: Config) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(f"{config.reward_model}/reward_head.safetensors")["score.weight"]


@pytest.mark.slow
def test_what_is_no_reward_model_is_named(
    config: Config, model_folder: Path, tmp_path: Path, make_model: Callable[..., None]
):
    model = load_model(config)
    change = lambda **changes: dataclasses.replace(config, **changes)
    with pytest.raises(
        UsageError, match=r"expected a model folder with reward_head\.safetensors, f"
    ):
        open_rewards(change(reward_model=str(model_folder)), model)
    make_model(tmp_path / "words", 1, ("red", "blue"))
    other = reward_folder(tmp_path / "words", tmp_path / "other")
    with pytest.raises(UsageError, match=r"expected the tokenizer of .*tiny, found another: train"):
        open_rewards(change(reward_model=other), model)
    wide = reward_folder(model_folder, tmp_path / "wide", width=9)
    with pytest.raises(UsageError, match=r"expected score\.weight of the shape \(1, 8\), found \("):
        open_rewards(change(reward_model=wide), model)
    with pytest.raises(UsageError, match="--max_length must be at most 32, because the reward mod"):
        open_rewards(change(max_length=64), model)
    (Path(wide) / "config.json").write_text(json.dumps({"model_type": "strange"}))
    with pytest.raises(UsageError, match=r"--reward_model=.*wide.*strange"):
        open_rewards(change(reward_model=wide), model)
