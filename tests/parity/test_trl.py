"""Losses and clipped shares of grpo and rloo beside those of TRL, on the same numbers."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.cli.finetune import online, policy
from shatter.cli.finetune.config import Config
from tests.cli.finetune.test_policy import constants, parts_of_a_step

torch = pytest.importorskip("torch", reason="parity with TRL needs torch")
pytestmark = pytest.mark.usefixtures("float64")
LOW, HIGH, BETA, LENGTH = 0.1, 0.15, 0.2, 4


@pytest.fixture(scope="module")
def trainers() -> SimpleNamespace:
    """Returns TRL's trainers, of which only the functions that compute losses are called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", reason="parity with TRL needs trl", exc_type=ImportError)
        from trl import GRPOTrainer, RLOOTrainer
    return SimpleNamespace(grpo=GRPOTrainer, rloo=RLOOTrainer)


class Step:
    """A step of two batches, whose real rows are joined for TRL.

    Attributes:
      config: the config.
      loss: our loss.
      shares: our shares of clipped ratios.
      arrays: mask, new, old and reference log-probs of the real rows, `[completions, T]`.
      rewards: `[prompts, completions]`.
    """

    def __init__(self, **changes: Any) -> None:
        self.config = Config(
            num_generations=3,
            max_completion_length=LENGTH,
            beta=BETA,
            epsilon=LOW,
            epsilon_high=HIGH,
            num_iterations=2,
            **changes,
        )
        parts = parts_of_a_step()
        own = constants(parts)
        batches = online.step_batches(self.config, parts)
        found = [
            policy.OBJECTIVES[self.config.objective](
                self.config, jnp.asarray(o), jax.tree.map(jnp.asarray, b)
            )
            for o, b in zip(own, batches, strict=True)
        ]
        self.loss = float(sum(jnp.sum(f.weight * f.losses) for f in found))
        each = [
            policy._clip_ratios(self.config, f, jnp.asarray(b.weight))
            for f, b in zip(found, batches, strict=True)
        ]
        self.shares = {
            name: sum(float(e[name].total) for e in each) / sum(float(e[name].weight) for e in each)
            for name in each[0]
        }
        rollouts = [part.rollouts for part in parts]
        columns = zip(
            *((r.mask, o, *r[3:5]) for r, o in zip(rollouts, own, strict=True)), strict=True
        )
        real = [part.is_real for part in parts]
        join = lambda arrays: np.concatenate([a[r] for a, r in zip(arrays, real, strict=True)])
        self.arrays = [join(column).reshape(9, -1) for column in columns]
        self.rewards = join([part.rewards for part in parts])


def trainer(step: Step, **more: Any) -> SimpleNamespace:
    """Returns what TRL's losses read of a trainer."""
    _, new, *_ = map(torch.tensor, step.arrays)
    whole = lambda x, *args, **kwargs: x
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=BETA,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        epsilon_low=LOW,
        epsilon_high=HIGH,
        max_completion_length=LENGTH,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(gather=whole, reduce=whole, num_processes=1),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        **more,
    )


def inputs(step: Step, advantages: np.ndarray) -> dict[str, Any]:
    """Returns a batch as TRL's losses read it; the prompts have no tokens."""
    mask, _, old, ref = map(torch.tensor, step.arrays)
    empty = torch.zeros((9, 0), dtype=torch.int64)
    return {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros_like(mask, dtype=torch.int64),
        "completion_mask": mask.to(torch.float64),
        "advantages": torch.tensor(advantages.reshape(9)),
        "old_per_token_logps": old,
        "old_logps": old.sum(-1),
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }


def assert_same_shares(step: Step, found: SimpleNamespace) -> None:
    for name, share in step.shares.items():
        assert share == pytest.approx(found._metrics["train"][name][0], rel=1e-6)
    assert step.shares["clip_ratio/region_mean"] > 0


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_of_grpo(trainers: SimpleNamespace, loss_type: str):
    step = Step(objective="grpo", loss_type=loss_type)
    found = trainer(step, loss_type=loss_type)
    rewards = step.rewards
    centred = rewards - rewards.mean(1, keepdims=True)
    advantages = centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    loss = trainers.grpo._compute_loss(found, None, inputs(step, advantages))
    assert step.loss == pytest.approx(float(loss), rel=1e-9)
    assert_same_shares(step, found)


def test_the_loss_of_rloo(trainers: SimpleNamespace):
    step = Step(objective="rloo")
    found = trainer(step)
    _, _, old, ref = step.arrays
    gains = step.rewards - BETA * (old - ref).sum(-1).reshape(3, 3)
    advantages = gains - (gains.sum(1, keepdims=True) - gains) / 2
    loss = trainers.rloo._compute_loss(found, None, inputs(step, advantages))
    assert step.loss == pytest.approx(float(loss), rel=1e-9)
    assert_same_shares(step, found)
