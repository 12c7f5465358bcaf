"""Extreme log-probs through every loss: no NaN, and half precision is only a way to store them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shatter import exploration, losses
from tests.campaigns.tally import Tally
from tests.strategies import SIZE, log_probs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Array = jax.Array
NUM, K = 32, 4
MASK = jnp.asarray([True, True, True, False])
RANKS = jnp.asarray([1, 2, 2, -1])
REWARDS = jnp.asarray([1.0, -2.0, 0.0, 3.0])
SLOPES = [name for name in losses.__all__ if name.endswith("_slope")]


def _fdpg(slope: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: losses.fdpg_loss(a, b, slope=slope)


# Losses of log-probs `a` of the policy and `b` of the reference, both [4]; they are differentiated
# by the first.
LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "ilhf_loss": lambda a, b: losses.ilhf_loss(a, jnp.argmax(a)),
    "ilhf_ranking_loss": lambda a, b: losses.ilhf_ranking_loss(a, RANKS),
    "forward_kl_loss": lambda a, b: losses.forward_kl_loss(b[None], a[None], MASK[:1]),
    "dpo_loss": lambda a, b: losses.dpo_loss(a[0], a[1], b[0], b[1], beta=0.1),
    "ipo_loss": lambda a, b: losses.ipo_loss(a[0], a[1], b[0], b[1], beta=0.1),
    "slic_loss": lambda a, b: losses.slic_loss(a[0], a[1], delta=1.0),
    "xpo_loss": lambda a, b: losses.xpo_loss(*a[:2], *b[:2], a[2], beta=0.1, alpha=0.1),
    "selm_loss": lambda a, b: losses.selm_loss(*a[:2], *b[:2], a[2], b[2], beta=0.1, alpha=0.1),
    "reinforce_loss": lambda a, b: losses.reinforce_loss(a, REWARDS),
    "rloo_loss": lambda a, b: losses.rloo_loss(a, REWARDS),
    "posterior_loss": lambda a, b: losses.posterior_loss(a, b, REWARDS, beta=0.1),
    "token_posterior_loss": lambda a, b: losses.token_posterior_loss(
        a, b, REWARDS[0], MASK, beta=0.1
    ),
    "elbo": lambda a, b: losses.elbo(a, b, REWARDS, beta=0.1),
    "kl_k1": losses.kl_k1,
    "kl_k2": losses.kl_k2,
    "kl_k3": losses.kl_k3,
    "sft_loss": lambda a, b: losses.sft_loss(a, MASK),
    "reward_model_loss": lambda a, b: losses.reward_model_loss(a, jnp.argmax(a)),
    "reward_model_ranking_loss": lambda a, b: losses.reward_model_ranking_loss(a, RANKS),
    "kl_penalised_rewards": lambda a, b: losses.kl_penalised_rewards(
        a, b, REWARDS[0], MASK, beta=0.1
    ),
    "ppo_loss": lambda a, b: losses.ppo_loss(a, b, REWARDS, MASK),
    "gdc_loss": lambda a, b: losses.gdc_loss(a, b, b[::-1]),
    **{f"fdpg_loss with {name}": _fdpg(getattr(losses, name)) for name in SLOPES},
}


@jax.jit
def measure(a: Array, b: Array) -> dict[str, tuple[Array, Array]]:
    """Values and gradients of every loss on `[NUM, 4]` log-probs."""

    def one(loss: Callable[[Array, Array], Array], a: Array, b: Array) -> tuple[Array, Array]:
        total = lambda a: jnp.sum(loss(a, b).astype(jnp.float32))
        return loss(a, b), jax.grad(total)(a)

    return {
        name: jax.vmap(lambda a, b, loss=loss: one(loss, a, b))(a, b)
        for name, loss in LOSSES.items()
    }


def small_enough(kind: str) -> float:
    """The least log-prob that a type holds without losing what it says."""
    return -1e3 if kind == "float16" else -1e5


def fault_of_numbers(
    found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], kind: str
) -> str | None:
    """What is wrong with a value and a gradient in half precision, beside those of float32."""
    if np.isnan(expected[0]).any():
        return "NaN in float32"
    if np.isnan(expected[1]).any():
        return "a gradient of NaN in float32"
    if not np.allclose(found[0].astype(np.float32), expected[0], rtol=1e-5, atol=1e-5):
        return f"not the value of float32 (it is {found[0].dtype})"
    near = expected[1].astype(kind).astype(np.float32)
    if not np.allclose(found[1].astype(np.float32), near, rtol=1e-2, equal_nan=True):
        return "not the gradient of float32"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_losses_of_extreme_log_probs(tally: Tally, kind: str):
    """Of finite log-probs: no NaN, and the numbers of float32, of the same inputs."""
    some = log_probs(NUM, K, lowest=small_enough(kind))

    @settings(max_examples=2 * SIZE)
    @given(some, some)
    def each(a: np.ndarray, b: np.ndarray) -> None:
        low = [jnp.asarray(x, kind) for x in (a, b)]
        full = [x.astype(jnp.float32) for x in low]
        expected = jax.device_get(measure(*full))
        for name, found in jax.device_get(measure(*low)).items():
            for n in range(NUM):
                one = [tuple(part[n] for part in some) for some in (found, expected[name])]
                fault = fault_of_numbers(*one, kind)
                inputs = (full[0][n].tolist(), full[1][n].tolist())
                tally.add(inputs, fault and f"{name}: {fault}")

    each()
    tally.settle()


ARMS = (
    "uniform",
    "greedy",
    "boltzmann",
    "thompson",
    "double_thompson",
    "infomax",
    "variance",
    "log_ratio_variance",
    "ucb",
)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_arms_on_extreme_log_probs(tally: Tally, arm: str, kind: str):
    """What is chosen is valid and distinct, -inf being a candidate that cannot be."""
    choose = getattr(exploration, arm)
    each_key = jax.jit(jax.vmap(lambda key, x, valid: choose(key, x, valid=valid, num_responses=2)))

    @settings(max_examples=4 * SIZE)
    @given(log_probs(NUM, 3, 6), st.integers(0, 2**31 - 1))
    def each(x: np.ndarray, seed: int) -> None:
        possible = np.isfinite(x).all(axis=1)
        low = jnp.asarray(np.maximum(x, small_enough(kind)), kind)
        valid = possible | (possible.sum(axis=1, keepdims=True) < 2)
        low = jnp.where(valid[:, None], low, -jnp.inf)
        keys = jax.random.split(jax.random.key(seed), NUM)
        for n, chosen in enumerate(np.asarray(each_key(keys, low, jnp.asarray(valid)))):
            fault = None
            if len(set(chosen.tolist())) < 2:
                fault = "a candidate twice"
            elif min(chosen) < 0 or max(chosen) >= 6 or not valid[n][chosen].all():
                fault = "a candidate that is not valid"
            tally.add((low[n].tolist(), valid[n].tolist()), fault)

    each()
    tally.settle()
