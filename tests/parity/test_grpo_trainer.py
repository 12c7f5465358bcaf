"""The loss of grpo and its gradient in the whole model beside those of TRL's GRPOTrainer."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import checkpoint, grpo
from experiments.benchmark.grpo import Ours
from shatter import models
from shatter.cli.finetune import learning, online, policy, rollouts
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen
from shatter.cli.finetune.policy import PolicyBatch

torch = pytest.importorskip("torch", reason="parity with TRL needs torch")
# transformers and TRL use names that they have deprecated.
pytestmark = pytest.mark.filterwarnings("default")


class Both(NamedTuple):
    """The same model, prompts and reward for both libraries."""

    own: Ours
    trainer: Any


@pytest.fixture(scope="module")
def both(make_model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    pytest.importorskip("trl", reason="parity with TRL needs trl", exc_type=ImportError)
    from experiments.benchmark import grpo_trl

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 2)
    file = folder / "tokenizer_config.json"  # its bos is not added by transformers
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": False}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "PROMPTS", ("abc", "fade"))
        grpo.prepare.cache_clear()
        sizes = checkpoint.sizes(str(folder))
        own = grpo.prepare(sizes, 0, False)
        # By default TRL multiplies a token's KL penalty by its ratio, unlike equation 3 of GRPO.
        yield Both(own, grpo_trl.make_trainer(sizes, own, use_bias_correction_kl=False))
    grpo.prepare.cache_clear()


def completions(own: Ours, config: Config) -> PolicyBatch:
    """Returns completions of different lengths, drawn by a policy that differs from the model."""
    rng = np.random.default_rng(0)
    draw = rollouts.make_draw(own.config, own.task.model, own.config.num_generations)
    key = jax.random.key(1)
    part = online.draw_part(own.config, own.task, draw, grpo.before(own), key, own.batch)
    drawn = part.rollouts
    num_left_out = rng.integers(0, own.config.max_completion_length, drawn.mask.shape[:2])
    size = drawn.mask.shape[-1]
    kept = np.arange(size) < size - num_left_out[..., None]
    mask = drawn.mask & kept
    noisy = [
        np.where(mask, drawn.log_probs + rng.normal(0, 0.2, mask.shape), 0).astype(np.float32)
        for _ in range(2)
    ]
    cut = rollouts.Rollouts(drawn.tokens, mask, drawn.valid & kept, *noisy, drawn.drawn_log_probs)
    rewards = rng.normal(size=part.rewards.shape)
    return online.step_batches(config, [part._replace(rollouts=cut, rewards=rewards)])[0]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_loss_and_its_gradient(both: Both, loss_type: str, tmp_path: Path):
    from experiments.benchmark import grpo_trl

    own, trainer = both
    settings: dict[str, Any] = {"loss_type": loss_type, "beta": 0.2}
    config = dataclasses.replace(
        own.config, num_iterations=2, epsilon=0.1, epsilon_high=0.15, **settings
    )
    batch = completions(own, config)
    model, trainable = own.task.model, learning.start(config, own.task.model, jax.random.key(0))
    objective = jax.jit(jax.value_and_grad(policy.make_objective(config, model), has_aux=True))
    arrays = jax.tree.map(jnp.asarray, batch)
    (loss, metrics), gradient = objective(trainable, Frozen(None, None), jax.random.key(0), arrays)
    share = metrics["clip_ratio/region_mean"]
    assert 0 < float(share.total) < float(share.weight)  # both sides of the clipping matter

    trainer.epsilon_low, trainer.epsilon_high = config.epsilon, config.epsilon_high
    for name, value in settings.items():
        setattr(trainer, name, value)
    rows = lambda values: torch.tensor(values[..., -config.max_completion_length :]).flatten(0, 1)
    given = grpo_trl.to_inputs(config, batch) | {
        "old_per_token_logps": rows(batch.log_probs),
        "ref_per_token_logps": rows(batch.ref_log_probs),
    }
    trainer.model.zero_grad()
    expected = trainer.compute_loss(trainer.model, given)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)

    models.save_pretrained(tmp_path, model.config, gradient.model)  # under their names
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "model.safetensors")
    theirs = {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.abs(value).max() > 1e-6, name
        np.testing.assert_allclose(
            found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name
        )
