"""The value function of ppo on a model whose completions can all be enumerated, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shatter import documents, models, training
from shatter.cli.finetune import online, optimizer, policy, values
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.pretrained import Pretrained
from shatter.cli.finetune.rollouts import Rollouts
from shatter.cli.finetune.token_scores import head_values, policy_and_values
from shatter.factored import Columns, FactoredLogits, Rows
from tests.cli.finetune.test_policy import assert_close, constants, parts_of_a_step

pytestmark = pytest.mark.usefixtures("float64")

BETA, PREFIXES = 0.3, 4
TRANSFORMER = models.TransformerConfig(
    vocab_size=3, max_length=3, width=PREFIXES, num_layers=1, num_heads=2
)
LAW = np.log([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]])
"""Log-probs of the next token after no token, 0, 1 and 2 (which ends), as a table of logits."""
DOCUMENTS = documents.enumerate_documents(vocab_size=3, max_length=2, eos=2)
REWARDS = np.random.default_rng(3).permutation(len(DOCUMENTS[0])).astype(float)
REF = np.random.default_rng(4).normal(size=LAW.shape)


def one_hot_prefixes(tokens, valid=None):
    """Returns features from which a linear head can read any value of any prefix."""
    del valid
    place = jnp.arange(tokens.shape[-1])
    prefix = jnp.where(place == 0, 0, 1 + tokens)
    return jax.nn.one_hot(jnp.where(place < 2, prefix, -1), PREFIXES)


def tabular() -> Pretrained:
    """Returns a table of logits by prefix, whose features are the prefixes."""
    factored = lambda params, tokens, valid=None: FactoredLogits(
        Rows(one_hot_prefixes(tokens)), Columns(kernel=params[0])
    )
    lm = models.tabular(vocab_size=3, max_length=2)._replace(factored=factored)
    return Pretrained(TRANSFORMER, None, None, lm, None)  # type: ignore[arg-type]


MODEL = tabular()


@jax.jit
def score(params, head, tokens, mask):
    return policy_and_values(MODEL, params, head, tokens, mask, jnp.ones_like(mask), 1.0)


def scores(params):
    """Returns the log-probs of the tokens of all completions, `[D, T]`."""
    return score(params, None, *DOCUMENTS)[0]


def law_of(params):
    return jnp.exp(jnp.sum(scores(params), axis=-1))


def j_kl(params):
    """Returns E r - beta KL(policy || reference)."""
    own, ref = jnp.sum(scores(params), axis=-1), jnp.sum(scores(REF), axis=-1)
    return jnp.sum(jnp.exp(own) * (REWARDS - BETA * (own - ref)))


def exact_values(params, beta: float = BETA, rewards=REWARDS) -> np.ndarray:
    """Returns the mean of what follows each prefix, by enumeration; 0 after the end."""
    tokens, mask = (np.asarray(array) for array in DOCUMENTS)
    own, ref = np.asarray(scores(params)), np.asarray(scores(REF))
    law, penalty = np.exp(own.sum(-1)), beta * (own - ref)
    found = [np.sum(law * (rewards - penalty.sum(-1)))]
    for token in (0, 1):
        starts = (tokens[:, 1] == token) & mask[:, 1]
        gains = rewards[starts] - penalty[starts, 2]
        found.append(np.sum(law[starts] * gains) / np.sum(law[starts]))
    return np.array([*found, 0.0])


def head_of(table) -> jnp.ndarray:
    """Returns the head of given values, which divides by the number of features."""
    return jnp.append(PREFIXES * jnp.asarray(table, float), 0.0)


def part_of(params, head, rows: list[np.ndarray], is_real: list[bool]) -> online._Part:
    """Returns a batch of given completions, `rows[B, N]` by their numbers, drawn by a policy."""
    tokens, mask = (np.asarray(array)[np.array(rows)] for array in DOCUMENTS)
    valid = np.ones_like(mask)
    own, found = jax.tree.map(np.asarray, score(params, head, tokens, mask))
    ref = np.asarray(score(REF, head, tokens, mask)[0])
    rollouts = Rollouts(tokens, mask, valid, own, ref, own.sum(-1), found)
    return online._Part(rollouts, REWARDS[np.array(rows)], {}, mask[..., 0], np.array(is_real), 0)


def population() -> np.ndarray:
    """Returns 16 completions, each as often as the law of `LAW` has it in 16."""
    counts = 16 * np.asarray(law_of(LAW))
    np.testing.assert_allclose(counts, counts.round(), rtol=1e-12)
    return np.random.default_rng(0).permutation(
        np.repeat(np.arange(len(counts)), counts.round().astype(int))
    )


def advantages_of(head: np.ndarray, lam: float) -> list[np.ndarray]:
    """Returns the generalised advantages of the population's tokens, by their definition."""
    tokens, mask = (np.asarray(array) for array in DOCUMENTS)
    own, ref = np.asarray(scores(LAW)), np.asarray(scores(REF))
    found = []
    for n in population():
        length = mask[n].sum()
        rewards = -BETA * (own - ref)[n, 1 : 1 + length]
        rewards[-1] += REWARDS[n]
        value = np.array([head[0], head[1 + tokens[n, 1]]])[:length]
        deltas = rewards + np.append(value[1:], 0.0) - value
        found.append(
            np.array(
                [sum(lam ** (u - t) * deltas[u] for u in range(t, length)) for t in range(length)]
            )
        )
    return found


@functools.cache
def expected_gradient():
    """Compiles the gradient of a batch's loss; neither beta nor lambda are in it."""
    config = Config(objective="ppo", num_generations=8)
    return jax.jit(jax.grad(policy.make_objective(config, MODEL), has_aux=True))


def table_of(name: str) -> np.ndarray:
    """Returns a value of every prefix."""
    if name == "exact":
        return exact_values(LAW)
    return np.array([1.0, -2.0, 3.0, 0.0]) * (name == "wrong")


@pytest.mark.parametrize(
    ("table", "lam", "is_unbiased"),
    [
        ("exact", 1.0, True),
        ("exact", 0.6, True),
        ("zero", 1.0, True),
        ("wrong", 1.0, True),
        ("wrong", 0.6, False),
    ],
)
def test_the_expected_gradient_is_that_of_the_regularised_objective(
    table: str, lam: float, is_unbiased: bool
):
    """A step of the whole population has the gradient of J, over the tokens and their deviation.

    It is cut into a batch of 8 completions and one of 8 with a prompt that only fills it up.
    """
    config = Config(objective="ppo", num_generations=8, beta=BETA, lam=lam)
    head, rows = head_of(table_of(table)), population().reshape(2, 1, 8)
    parts = [
        part_of(LAW, head, [rows[0, 0], rows[0, 0]], [True, False]),
        part_of(LAW, head, list(rows[1]), [True]),
    ]
    read = Trainable(jnp.asarray(LAW), head), Frozen(None, None), jax.random.key(0)
    found = [expected_gradient()(*read, b)[0] for b in online.step_batches(config, parts)]
    total = jax.tree.map(jnp.add, *found)
    advantages = np.concatenate(advantages_of(table_of(table), lam))
    per_completion, deviation = len(advantages) / 16, np.sqrt(advantages.var() + 1e-8)
    scaled = -total.model * per_completion * deviation
    exact = jax.jit(jax.grad(j_kl))(jnp.asarray(LAW))
    if is_unbiased:
        assert_close(scaled, exact)
    else:
        assert float(jnp.max(jnp.abs(scaled - exact))) > 0.05
    if table == "exact":  # the value function has nothing to learn
        np.testing.assert_allclose(total.head, 0.0, atol=1e-12)
    elif lam == 1.0:
        assert float(jnp.max(jnp.abs(total.head))) > 0.01


@pytest.mark.parametrize("table", ["exact", "zero", "wrong"])
def test_targets_are_what_follows_and_their_means_are_the_values(table: str):
    """With lambda 1 they do not depend on the present values."""
    config = Config(objective="ppo", num_generations=16, beta=BETA, lam=1.0)
    part = part_of(LAW, head_of(table_of(table)), [population()], [True])
    scored = [values.Scored(part.rollouts, part.rewards, part.is_real)]
    (found,) = values.estimate(config, scored)
    mask = part.rollouts.mask[0]
    np.testing.assert_array_equal(found.values[0], part.rollouts.values[0])
    np.testing.assert_array_equal(found.targets[0][~mask], 0.0)
    first, second = found.targets[0][:, 1], found.targets[0][:, 2]
    starts = part.rollouts.tokens[0][:, 1]
    means = [first.mean(), *(second[mask[:, 2] & (starts == token)].mean() for token in (0, 1))]
    np.testing.assert_allclose(means, exact_values(LAW)[:3], rtol=1e-12)
    advantages = found.advantages[0][mask]
    np.testing.assert_allclose([advantages.mean(), advantages.std()], [0, 1], atol=1e-7)
    share = values.var_explained(scored, [found])["val/var_explained"].total
    error, spread = found.targets[0][mask] - found.values[0][mask], found.targets[0][mask].var()
    np.testing.assert_allclose(share, 1 - np.mean(error**2) / spread)
    assert (share > 0) == (table == "exact")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "changes"),
    [("rloo", {}), ("ppo", {}), ("ppo", {"num_iterations": 3, "learning_rate": 0.02})],
    ids=["rloo", "ppo", "ppo of three updates"],
)
def test_a_run_ends_in_the_tilted_reference_and_its_values(objective: str, changes: dict):
    """Samples alone lead rloo and ppo to p0 exp(r / beta) / Z, and the head to the mean return."""
    settings = {"objective": objective, "num_generations": 256, "beta": 2.0, "lam": 0.95}
    config = Config(**{**settings, "learning_rate": 0.05, "vf_learning_rate": 0.2, **changes})  # type: ignore[arg-type]
    num_steps, is_ppo = 300, objective == "ppo"
    num_updates = num_steps * config.num_iterations
    schedule = optax.linear_schedule(config.learning_rate, 0.0, num_updates)
    optimiser = optimizer.make_optimizer(config, schedule)
    learner = training.learner(policy.make_objective(config, MODEL), optimiser)
    step, rng = jax.jit(learner.step), np.random.default_rng(0)
    start = Trainable(jnp.asarray(REF), head_of(np.zeros(PREFIXES)) if is_ppo else None)
    state = learner.init(start, jax.random.key(0))
    for _ in range(num_steps):
        law = np.asarray(law_of(state.params.model))
        rows = rng.choice(len(law), 256, p=law / law.sum())
        part = part_of(*state.params, [rows], [True])
        (batch,) = online.step_batches(config, [part])
        for _ in range(config.num_iterations):
            state, _ = step(state, Frozen(None, None), batch)
    target = np.asarray(law_of(REF)) * np.exp(REWARDS / 2.0)
    target /= target.sum()
    divergence = lambda params: float(
        np.sum((p := np.asarray(law_of(params))) * np.log(p / target))
    )
    assert divergence(REF) > 0.3
    assert divergence(state.params.model) < 0.005
    if is_ppo:
        exact = exact_values(state.params.model, beta=2.0)[:3]
        np.testing.assert_allclose(
            state.params.head[:3] / PREFIXES + state.params.head[-1], exact, atol=0.15
        )


def test_the_head_has_a_learning_rate_of_its_own():
    """AdamW's first step changes every number by its learning rate."""
    config = Config(objective="ppo", learning_rate=1e-3, vf_learning_rate=0.02)
    optimiser = optimizer.make_optimizer(config, optax.constant_schedule(config.learning_rate))
    start = Trainable(jnp.asarray(LAW), head_of(np.zeros(PREFIXES)))
    slope = Trainable(jnp.ones_like(start.model), -jnp.ones_like(start.head))
    updates, _ = jax.jit(optimiser.update)(slope, optimiser.init(start), start)
    np.testing.assert_allclose(updates.model, -1e-3, rtol=1e-6)
    np.testing.assert_allclose(updates.head, 0.02, rtol=1e-6)


def test_losses_of_a_step_are_those_of_trl():
    """By NumPy in TRL's formulas, over two batches of other lengths and a prompt that fills up.

    Ours whitens by the deviation with n in the denominator, TRL with n - 1.
    """
    config = Config(
        objective="ppo", num_generations=3, beta=0.2, epsilon=0.1, num_iterations=2,
        gamma=0.9, lam=0.7, vf_coef=0.3, cliprange_value=0.15,
    )  # fmt: skip
    rng, parts = np.random.default_rng(7), parts_of_a_step()
    draw = lambda p, scale: np.where(
        p.rollouts.mask, rng.normal(0, scale, p.rollouts.mask.shape), 0
    )
    old = [draw(p, 1.0) for p in parts]
    parts = [
        p._replace(rollouts=p.rollouts._replace(values=v)) for p, v in zip(parts, old, strict=True)
    ]
    new_values, own = [v + draw(p, 0.2) for p, v in zip(parts, old, strict=True)], constants(parts)
    loss, shares = 0.0, np.zeros(2)
    for batch, log_probs, new in zip(
        online.step_batches(config, parts), own, new_values, strict=True
    ):
        found = policy.OBJECTIVES["ppo"](config, jnp.asarray(log_probs), batch)
        value, metrics = policy.value_part(config, jnp.asarray(new), batch)
        loss += jnp.sum(found.weight * found.losses) + config.vf_coef * value
        shares += np.array(metrics["val/clipfrac_avg"])
    join = lambda arrays: np.concatenate(
        [a[p.is_real].reshape(-1, 7) for a, p in zip(arrays, parts, strict=True)]
    )
    mask = join([p.rollouts.mask for p in parts])
    before, ref = (join([p.rollouts[n] for p in parts]) for n in (3, 4))
    value, new, now = join(old), join(new_values), join(own)
    rewards = -0.2 * (before - ref)
    last = 3 + mask.sum(-1) - 1
    rewards[np.arange(len(mask)), last] += np.concatenate(
        [p.rewards[p.is_real].ravel() for p in parts]
    )
    advantages, running = np.zeros_like(rewards), np.zeros(len(mask))
    for t in reversed(range(7)):
        follows = value[:, t + 1] if t < 6 else 0.0
        running = (rewards[:, t] + 0.9 * follows - value[:, t] + 0.9 * 0.7 * running) * mask[:, t]
        advantages[:, t] = running
    returns = advantages + value
    counted = advantages[mask]
    white = (advantages - counted.mean()) / np.sqrt(counted.var() + 1e-8)
    ratio = np.exp(now - before)
    of_policy = np.maximum(-white * ratio, -white * np.clip(ratio, 0.9, 1.1))[mask].mean()
    far, near = (new - returns) ** 2, (np.clip(new, value - 0.15, value + 0.15) - returns) ** 2
    of_values = 0.5 * np.maximum(far, near)[mask].mean()
    np.testing.assert_allclose(loss, of_policy + 0.3 * of_values, rtol=1e-12)
    np.testing.assert_allclose(shares[0] / shares[1], (near > far)[mask].mean())
    assert 0 < shares[0] < shares[1]


@pytest.mark.slow  # it compiles a transformer and its gradient
def test_values_are_those_of_the_states_in_which_tokens_are_chosen():
    """They are linear in the features at the token before, and read no padding."""
    lm = models.transformer(TRANSFORMER)
    model = Pretrained(TRANSFORMER, None, None, lm, None)  # type: ignore[arg-type]
    params, head = jax.jit(lm.init)(jax.random.key(0)), jnp.arange(1.0, PREFIXES + 2)
    tokens, valid = jnp.array([[0, 1, 2], [7, 0, 1]]), jnp.array([[True] * 3, [False, True, True]])
    mask = jnp.array([[False, True, True], [False, False, True]])
    run = jax.jit(
        lambda params, head, tokens: policy_and_values(
            model, params, head, tokens, mask, valid, 0.7
        )
    )
    log_probs, found = run(params, head, tokens)
    assert lm.features is not None and found is not None
    features = jax.jit(lm.features)(params, tokens, valid=valid)
    expected = np.zeros((2, 3))
    expected[0, 1:] = features[0, :2] @ head[:-1] / PREFIXES + head[-1]
    expected[1, 2] = features[1, 1] @ head[:-1] / PREFIXES + head[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    plain, _ = run(params, None, tokens)
    np.testing.assert_allclose(log_probs, plain, rtol=1e-12, atol=1e-15)
    other = run(params, head, tokens.at[0, 2].set(0))[1]
    np.testing.assert_array_equal(other, found)  # a value does not know its own token
    slope = jax.jit(jax.grad(lambda p: jnp.sum(run(p, head, tokens)[1])))(params)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) > 0.01
    spoilt = jnp.where(mask[..., None] | ~valid[..., None], jnp.nan, features)
    spoilt = spoilt.at[0, 1].set(features[0, 1])
    slope = jax.grad(lambda h: jnp.sum(head_values(h, spoilt, mask)))(head)
    read = features[0, 0] + features[0, 1] + features[1, 1]
    np.testing.assert_allclose(slope[:-1], read / PREFIXES)
    assert slope[-1] == 3.0
