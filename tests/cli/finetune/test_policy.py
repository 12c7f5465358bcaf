"""Expected gradients of the objectives of reinforcement learning, by enumeration, exactly."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models
from shatter.cli.finetune import online, policy
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.policy import PolicyBatch
from shatter.cli.finetune.pretrained import Pretrained
from shatter.cli.finetune.rollouts import Rollouts, passes_in_training
from shatter.cli.finetune.token_scores import policy_and_values
from shatter.types import Array, Params

pytestmark = pytest.mark.usefixtures("float64")

LENGTH, BETA = 2, 0.3
TRANSFORMER = models.TransformerConfig(
    vocab_size=3, max_length=LENGTH + 1, width=4, num_layers=1, num_heads=2
)


of_both_models = pytest.mark.parametrize(
    "is_transformer",
    [
        pytest.param(False, id="tabular"),
        pytest.param(True, id="transformer", marks=pytest.mark.slow),
    ],
)


def enumerated(is_transformer: bool, temperature: float):
    """Returns a model, its parameters, those of a reference, all documents and their rewards."""
    tabular = models.tabular(vocab_size=3, max_length=LENGTH)
    lm = models.transformer(TRANSFORMER) if is_transformer else tabular
    model = Pretrained(TRANSFORMER, None, None, lm, None)  # type: ignore[arg-type]
    wide = lambda tree: jax.tree.map(lambda leaf: 1.5 * leaf.astype(jnp.float64), tree)
    params, ref = (wide(lm.init(jax.random.key(seed))) for seed in (0, 1))
    tokens, mask = documents.enumerate_documents(vocab_size=3, max_length=LENGTH, eos=2)

    valid = jnp.ones_like(mask)

    def score(params: Params) -> Array:
        return policy_and_values(model, params, None, tokens, mask, valid, temperature)[0]

    rewards = jnp.asarray(np.random.default_rng(3).permutation(len(tokens)).astype(float))
    return model, params, ref, tokens, mask, score, rewards


def expected_gradient(config: Config, is_transformer: bool = False):
    """Returns the mean gradient over all groups of completions, and what it is compared with."""
    model, params, ref, tokens, mask, score, rewards = enumerated(
        is_transformer, config.temperature
    )
    num = config.num_generations
    groups = np.array(list(itertools.product(range(len(tokens)), repeat=num)))
    law = jnp.exp(jnp.sum(score(params), -1))
    np.testing.assert_allclose(jnp.sum(law), 1.0, rtol=1e-12)
    weight = jnp.prod(law[groups], axis=1)[:, None] * np.full(groups.shape, 1 / num)
    lengths = jnp.sum(mask, axis=-1)[groups]
    batch = PolicyBatch(
        tokens[groups],
        mask[groups],
        jnp.ones_like(mask)[groups],
        score(params)[groups],
        score(ref)[groups],
        rewards[groups],
        jnp.std(rewards[groups], axis=1, ddof=1) if num > 1 else jnp.zeros(len(groups)),
        weight,
        weight / {"dr_grpo": LENGTH, "grpo": lengths, "dapo": 1.0}[config.loss_type],
    )
    objective = jax.jit(jax.value_and_grad(policy.make_objective(config, model), has_aux=True))
    trainable = Trainable(params, None)
    (loss, metrics), gradient = objective(trainable, Frozen(None, None), jax.random.key(0), batch)
    return loss, metrics, gradient.model, (params, ref, mask, score, rewards)


def assert_close(found, expected, rtol: float = 1e-9) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected)) > 0.01


def j_kl(score, ref, rewards, params):
    """Returns E r - beta KL(policy || reference), over all documents."""
    log_probs, ref_log_probs = jnp.sum(score(params), -1), jnp.sum(score(ref), -1)
    return jnp.sum(jnp.exp(log_probs) * (rewards - BETA * (log_probs - ref_log_probs)))


@of_both_models
@pytest.mark.parametrize(
    ("objective", "num", "iterations", "temperature"),
    [
        ("rloo", 2, 1, 1.0),
        pytest.param("rloo", 2, 2, 0.7, marks=pytest.mark.slow),
        pytest.param("rloo", 3, 1, 0.7, marks=pytest.mark.slow),
        pytest.param("posterior", 1, 1, 1.0, marks=pytest.mark.slow),
        ("posterior", 2, 1, 0.7),
    ],
)
def test_the_expected_gradient_is_that_of_the_regularised_objective(
    objective: str, num: int, iterations: int, temperature: float, is_transformer: bool
):
    """At a temperature the policy is the tempered model; at the first of several updates too."""
    config = Config(
        objective=objective,  # type: ignore[arg-type]
        num_generations=num,
        beta=BETA,
        num_iterations=iterations,
        temperature=temperature,
    )
    loss, metrics, found, (params, ref, _, score, rewards) = expected_gradient(
        config, is_transformer
    )
    exact = partial(j_kl, score, ref, rewards)
    expected = jax.tree.map(jnp.negative, jax.jit(jax.grad(exact))(params))
    assert_close(found, expected)
    if objective == "posterior":  # its loss is the objective, and rloo's is 0 in the mean
        np.testing.assert_allclose(loss, -exact(params), rtol=1e-9)
    else:
        np.testing.assert_allclose(loss, 0.0, atol=1e-12)
    kl = jnp.sum(jnp.exp(jnp.sum(score(params), -1)) * jnp.sum(score(params) - score(ref), -1))
    np.testing.assert_allclose(metrics["kl"] * iterations, kl, rtol=1e-9)
    assert metrics["entropy"].total / metrics["entropy"].weight > 0


@of_both_models
@pytest.mark.parametrize("num", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_unscaled_grpo_is_the_mean_reward_and_a_forward_kl_at_every_token(
    num: int, is_transformer: bool
):
    """-(K - 1) / K grad E r + beta grad KL(reference || policy) at sampled prefixes, over L."""
    config = Config(
        objective="grpo",
        num_generations=num,
        beta=BETA,
        scale_rewards="none",
        loss_type="dr_grpo",
        max_completion_length=LENGTH,
    )
    _, _, found, (params, ref, mask, score, rewards) = expected_gradient(config, is_transformer)
    model, _, _, tokens, *_ = enumerated(is_transformer, 1.0)

    def exact(params):
        log_probs = score(params)
        law = jnp.exp(jnp.sum(log_probs, -1))
        laws = lambda p: jax.nn.log_softmax(model.lm.apply(p, tokens)[:, :-1])
        own, before = laws(params), laws(ref)
        kl = jnp.sum(jnp.exp(before) * (before - own), axis=-1)
        visited = jax.lax.stop_gradient(law)
        penalty = jnp.sum(visited * jnp.sum(jnp.where(mask[:, 1:], kl, 0.0), axis=-1))
        return (-(num - 1) / num * jnp.sum(law * rewards) + BETA * penalty) / LENGTH

    assert_close(found, jax.jit(jax.grad(exact))(params))


def test_scaled_grpo_of_two_maximises_wins_and_not_the_reward():
    """Of two completions the better one has +1 / sqrt(2), however much better it is."""
    config = Config(
        objective="grpo", num_generations=2, beta=0.0, loss_type="dr_grpo", max_completion_length=2
    )
    _, _, found, (params, _, _, score, rewards) = expected_gradient(config)

    def wins(params):
        law = jnp.exp(jnp.sum(score(params), -1))
        signs = jnp.sign(rewards[:, None] - rewards[None])
        return -(law @ signs @ jax.lax.stop_gradient(law)) / np.sqrt(2) / LENGTH

    def mean_reward(params):
        return -jnp.sum(jnp.exp(jnp.sum(score(params), -1)) * rewards)

    assert_close(found, jax.jit(jax.grad(wins))(params), rtol=2e-4)  # of the 1e-4 in the deviation
    flat = lambda tree: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    one, other = flat(found), flat(jax.jit(jax.grad(mean_reward))(params))
    cosine = one @ other / (jnp.linalg.norm(one) * jnp.linalg.norm(other))
    assert cosine < 0.995  # another direction


# --- the numbers of a step, by NumPy as in TRL's formulas -----------------------------------------


def parts_of_a_step(num: int = 3) -> list[online._Part]:
    """Returns two batches of two prompts; the last prompt only fills up its batch."""
    rng, made = np.random.default_rng(5), []
    for is_real in ([True, True], [True, False]):
        lengths = rng.integers(1, 5, (2, num))
        mask = (np.arange(7) >= 3) & (np.arange(7) < 3 + lengths[..., None])
        tokens = rng.integers(0, 3, mask.shape)
        logs = [np.where(mask, rng.normal(-1, 0.3, mask.shape), 0) for _ in range(2)]
        rollouts = Rollouts(tokens, mask, mask | (np.arange(7) < 3), *logs, logs[0].sum(-1))
        rewards = np.where(np.asarray(is_real)[:, None], rng.normal(size=(2, num)), 0)
        each = {"r": rewards[np.asarray(is_real)]}
        finished = lengths < 4
        made.append(online._Part(rollouts, rewards, each, finished, np.asarray(is_real), 30))
    return made


def constants(parts: list[online._Part]):
    """Returns a model whose log-probs of the step's tokens are given numbers, and the numbers."""
    rng = np.random.default_rng(6)
    own = [
        p.rollouts.log_probs
        + np.where(p.rollouts.mask, rng.normal(0, 0.2, p.rollouts.mask.shape), 0)
        for p in parts
    ]
    return own


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_losses_of_a_step_of_grpo_are_those_of_trl(loss_type: str, scale: str):
    config = Config(
        objective="grpo",
        num_generations=3,
        max_completion_length=4,
        scale_rewards=scale,  # type: ignore[arg-type]
        loss_type=loss_type,  # type: ignore[arg-type]
        beta=0.2,
        epsilon=0.1,
        epsilon_high=0.15,
        num_iterations=2,
    )
    parts = parts_of_a_step()
    own = constants(parts)
    batches = online.step_batches(config, parts)
    found = [
        policy.OBJECTIVES["grpo"](config, jnp.asarray(o), jax.tree.map(jnp.asarray, b))
        for o, b in zip(own, batches, strict=True)
    ]
    loss = sum(jnp.sum(f.weight * f.losses) for f in found)
    join = lambda arrays: np.concatenate([a[p.is_real] for a, p in zip(arrays, parts, strict=True)])
    mask = join([p.rollouts.mask for p in parts])
    new, old, ref = (
        join(own),
        join([p.rollouts.log_probs for p in parts]),
        join([p.rollouts.ref_log_probs for p in parts]),
    )
    rewards = join([p.rewards for p in parts])
    deviation = {
        "group": rewards.std(1, ddof=1, keepdims=True) + 1e-4,
        "batch": rewards.std(ddof=1) + 1e-4,
        "none": 1.0,
    }[scale]
    advantages = ((rewards - rewards.mean(1, keepdims=True)) / deviation)[..., None]
    ratio = np.exp(new - old)
    each = -np.minimum(ratio * advantages, np.clip(ratio, 0.9, 1.15) * advantages)
    each = (each + 0.2 * (np.exp(ref - new) - (ref - new) - 1)) * mask
    expected = {
        "grpo": (each.sum(-1) / mask.sum(-1)).mean(),
        "dapo": each.sum() / mask.sum(),
        "dr_grpo": each.sum() / (rewards.size * 4),
    }[loss_type]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    clipped = ((ratio < 0.9) & (advantages < 0)) | ((ratio > 1.15) & (advantages > 0))
    shares = [
        policy._clip_ratios(config, f, jnp.asarray(b.weight))
        for f, b in zip(found, batches, strict=True)
    ]
    totals = [sum(s["clip_ratio/region_mean"][n] for s in shares) for n in (0, 1)]
    np.testing.assert_allclose(totals[0] / totals[1], (clipped & mask).sum() / mask.sum())
    assert (clipped & mask).any()


def test_the_loss_of_a_step_of_rloo_is_that_of_trl():
    config = Config(objective="rloo", num_generations=3, beta=0.2, epsilon=0.1, num_iterations=2)
    parts = parts_of_a_step()
    own = constants(parts)
    batches = online.step_batches(config, parts)
    found = [
        policy.OBJECTIVES["rloo"](config, jnp.asarray(o), jax.tree.map(jnp.asarray, b))
        for o, b in zip(own, batches, strict=True)
    ]
    loss = sum(jnp.sum(f.weight * f.losses) for f in found)
    join = lambda arrays: np.concatenate([a[p.is_real] for a, p in zip(arrays, parts, strict=True)])
    new, old, ref = (
        join(a).sum(-1)
        for a in (
            own,
            [p.rollouts.log_probs for p in parts],
            [p.rollouts.ref_log_probs for p in parts],
        )
    )
    gains = join([p.rewards for p in parts]) - 0.2 * (old - ref)
    advantages = gains - (gains.sum(1, keepdims=True) - gains) / 2
    ratio = np.exp(new - old)
    expected = -np.minimum(ratio * advantages, np.clip(ratio, 0.9, 1.1) * advantages).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_metrics_of_a_step_count_what_is_real():
    parts = parts_of_a_step()
    config = Config(objective="rloo", num_generations=3, max_completion_length=4)
    found = {name: mean.total for name, mean in online._metrics(config, parts).items()}
    rewards = np.concatenate([p.rewards[p.is_real] for p in parts])
    lengths = np.concatenate([p.rollouts.mask.sum(-1)[p.is_real] for p in parts])
    finished = np.concatenate([p.finished[p.is_real] for p in parts])
    assert rewards.shape == (3, 3)
    np.testing.assert_allclose(found["reward"], rewards.mean())
    np.testing.assert_allclose(found["reward_std"], rewards.std(ddof=1))
    np.testing.assert_allclose(found["rewards/r/mean"], rewards.mean())
    assert found["frac_reward_zero_std"] == 0.0
    assert found["completions/mean_length"] == lengths.mean()
    assert (found["completions/min_length"], found["completions/max_length"]) == (
        lengths.min(),
        lengths.max(),
    )
    np.testing.assert_allclose(found["completions/clipped_ratio"], 1 - finished.mean())


def test_the_largest_difference_is_that_of_the_policy_that_drew():
    rows = [{policy.DIFFERENCES: np.array([[0.1, 0.3]])}, {policy.DIFFERENCES: np.array([[0.2]])}]
    later = [{policy.DIFFERENCES: np.array([[9.0]]), "loss": 1.0}]
    found = online.with_largest_difference([*rows, *later], 2)
    assert found[0]["sampling/logp_difference_max"] == (0.3, 1.0)
    assert found[1:] == [{}, {"loss": 1.0}]
    assert online.with_largest_difference([{"loss": 1.0}], 1) == [{"loss": 1.0}]


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_what_nothing_reads_changes_no_loss(objective: str):
    config = Config(objective=objective, num_generations=3, max_completion_length=4, beta=0.0)  # type: ignore[arg-type]
    assert passes_in_training(config) == (False, False)
    parts = parts_of_a_step()
    bare = [
        p._replace(rollouts=p.rollouts._replace(log_probs=None, ref_log_probs=None)) for p in parts
    ]

    def value_and_gradient(parts: list[online._Part]):
        batches = jax.tree.map(jnp.asarray, online.step_batches(config, parts))

        def loss(own):
            found = [
                policy.OBJECTIVES[objective](config, *pair)
                for pair in zip(own, batches, strict=True)
            ]
            return sum(jnp.sum(f.weight * f.losses) for f in found)

        return jax.value_and_grad(loss)([jnp.asarray(own) for own in constants(parts_of_a_step())])

    jax.tree.map(np.testing.assert_array_equal, value_and_gradient(bare), value_and_gradient(parts))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": "rloo", "beta": 0.1}, (False, True)),
        ({"objective": "grpo", "num_iterations": 2, "beta": 0.0}, (True, False)),
        ({"objective": "ppo", "beta": 0.0}, (True, True)),
    ],
)
def test_passes_that_updates_read(changes: dict[str, Any], expected: tuple[bool, bool]):
    assert passes_in_training(Config(**changes)) == expected
