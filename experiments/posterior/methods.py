"""The objectives as methods: what they draw, what they minimise, what they carry along."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.didactic import World
from experiments.posterior.problem import Problem
from shatter import documents, inference, losses, numerics
from shatter.types import Array, Key, Params

VALUE_COEFFICIENT = 0.1
PPO_EPOCHS = 4
KL_MEMORY = 0.9  # of the moving averages by which GDC's proposal is judged


class Method(NamedTuple):
    """One objective, with what differs between objectives.

    Attributes:
      start: `(problem) -> (trainable, extra)`; the trainable is a dict with "policy" in it.
      draw: `(problem, trainable, extra, key) -> batch`.
      loss: `(problem, trainable, batch) -> []`.
      after: `(problem, trainable, extra, batch) -> extra`, before the batch is learned from.
      epochs: gradient steps a batch.
      knows_beta: whether the trained law depends on beta.
      by_target: whether it is given the target's log-probs, not rewards and beta.
    """

    start: Callable[[Problem], tuple[Any, Any]]
    draw: Callable[[Problem, Any, Any, Key], Any]
    loss: Callable[[Problem, Any, Any], Array]
    after: Callable[[Problem, Any, Any, Any], Any] = lambda problem, trainable, extra, batch: extra
    epochs: int = 1
    knows_beta: bool = True
    by_target: bool = False


def policy_tokens(world: World, params: Params) -> Array:
    """Log-probs of the tokens of all documents, `[D, T]`, 0 outside the responses."""
    tokens, mask = world.space
    return jnp.where(mask, documents.token_log_probs(world.lm.apply(params, tokens), tokens), 0.0)


def policy(world: World, params: Params) -> Array:
    """Log-probs of all documents, `[D]`."""
    return jnp.sum(policy_tokens(world, params), axis=-1)


def make_methods(world: World, batch_size: int) -> dict[str, Method]:
    """The table from a flag to a method.

    Args:
      world: the model and all documents.
      batch_size: samples, or comparisons, a batch.

    Returns:
      By name.
    """
    drawn = lambda problem, trainable, extra, key: _draw(
        key, policy(world, trainable["policy"]), batch_size
    )
    start = lambda problem: ({"policy": problem.params}, ())

    def on_policy(
        loss: Callable[[Problem, Array, Array], Array], knows_beta: bool = True
    ) -> Method:
        """`loss(problem, log_probs[B], indices[B]) -> [B]` over samples of the policy."""

        def mean_loss(problem: Problem, trainable: Any, batch: Array) -> Array:
            log_probs = policy(world, trainable["policy"])[batch]
            return jnp.mean(loss(problem, log_probs, batch))

        return Method(start, drawn, mean_loss, knows_beta=knows_beta)

    def exactly(loss: Callable[[Problem, Array], Array], knows_beta: bool = True) -> Method:
        """`loss(problem, log_probs[D]) -> []`, without samples."""
        return Method(
            start,
            lambda problem, trainable, extra, key: (),
            lambda problem, trainable, batch: loss(problem, policy(world, trainable["policy"])),
            knows_beta=knows_beta,
        )

    def gain(problem: Problem, log_probs: Array, at: Array) -> Array:
        bound = losses.elbo(log_probs, problem.log_p0[at], problem.rewards[at], beta=problem.beta)
        return problem.beta * bound

    def kl_control_token(problem: Problem, trainable: Any, batch: Array) -> Array:
        tokens = policy_tokens(world, trainable["policy"])[batch]
        ref_tokens = policy_tokens(world, problem.params)[batch]
        rewards, mask = problem.rewards[batch], world.space[1][batch]
        return jnp.mean(
            losses.token_posterior_loss(tokens, ref_tokens, rewards, mask, beta=problem.beta)
        )

    fdpg = lambda slope: _fdpg(world, slope, drawn)
    return {
        "reward": on_policy(lambda p, x, at: losses.rloo_loss(x, p.rewards[at]), False),
        "reward_exact": exactly(lambda p, x: -numerics.expectation(x, p.rewards), False),
        "kl_control": on_policy(
            lambda p, x, at: losses.posterior_loss(x, p.log_p0[at], p.rewards[at], beta=p.beta)
        ),
        "kl_control_exact": exactly(
            lambda p, x: losses.exact_posterior_loss(x, p.log_p0, p.rewards, beta=p.beta)
        ),
        "kl_control_token": Method(start, drawn, kl_control_token),
        "rloo": on_policy(lambda p, x, at: losses.rloo_loss(x, gain(p, x, at))),
        "ppo": _ppo(world, drawn),
        "fdpg_forward_kl": fdpg(losses.forward_kl_slope),
        "fdpg_reverse_kl": fdpg(losses.reverse_kl_slope),
        "fdpg_jensen_shannon": fdpg(losses.jensen_shannon_slope),
        "fdpg_total_variation": fdpg(losses.total_variation_slope),
        "fdpg_forward_chi2": fdpg(losses.forward_chi_squared_slope),
        "fdpg_reverse_chi2": fdpg(losses.reverse_chi_squared_slope),
        "gdc": _gdc(world, batch_size),
        "dpo": _pairs(world, start, batch_size, _dpo),
        "ilhf": _pairs(world, start, batch_size, _ilhf)._replace(knows_beta=False),
    }


def _draw(key: Key, log_probs: Array, batch_size: int) -> Array:
    """Documents of an exact law, as indices `[B]`."""
    return jax.random.categorical(key, log_probs, shape=(batch_size,))


def _fdpg(world: World, slope: Callable[[Array], Array], drawn: Any) -> Method:
    """On-policy f-DPG; Z is the running mean of P / pi over all samples so far."""

    def start(problem: Problem) -> tuple[Any, Any]:
        return {"policy": problem.params}, (jnp.zeros(()), jnp.zeros(()))

    def draw(problem: Problem, trainable: Any, extra: Any, key: Key) -> Any:
        at = drawn(problem, trainable, extra, key)
        log_probs = policy(world, trainable["policy"])[at]
        return at, _running_z(extra, problem.log_target[at] - log_probs)

    def loss(problem: Problem, trainable: Any, batch: Any) -> Array:
        at, (z, _) = batch
        log_probs = policy(world, trainable["policy"])[at]
        target = problem.log_target[at]
        return jnp.mean(losses.fdpg_loss(log_probs, target, slope=slope, log_z=_log(z)))

    after = lambda problem, trainable, extra, batch: batch[1]
    return Method(start, draw, loss, after, by_target=True)


def _gdc(world: World, batch_size: int) -> Method:
    """GDC: samples of a proposal, which the policy replaces once it is closer to the target."""

    def start(problem: Problem) -> tuple[Any, Any]:
        nothing = jnp.zeros(())
        extra = {
            "proposal": problem.params,
            "z": (nothing, nothing),
            "proposal_kl": nothing,
            "policy_kl": nothing,
        }
        return {"policy": problem.params}, extra

    def draw(problem: Problem, trainable: Any, extra: Any, key: Key) -> Any:
        log_proposal = policy(world, extra["proposal"])
        at = _draw(key, log_proposal, batch_size)
        z = _running_z(extra["z"], problem.log_target[at] - log_proposal[at])
        return at, log_proposal[at], z

    def loss(problem: Problem, trainable: Any, batch: Any) -> Array:
        at, log_proposal, (z, _) = batch
        log_probs = policy(world, trainable["policy"])[at]
        target = problem.log_target[at]
        return jnp.mean(losses.gdc_loss(log_probs, target, log_proposal, log_z=_log(z)))

    def after(problem: Problem, trainable: Any, extra: Any, batch: Any) -> Any:
        at, log_proposal, z = batch
        target = problem.log_target[at]
        log_probs = policy(world, trainable["policy"])[at]
        some_mass = inference.effective_sample_size(target - log_proposal) > 0
        memory = jnp.where(extra["z"][1] > 0, KL_MEMORY, 0.0)

        def remember(name: str, log_probs: Array) -> Array:
            kl = memory * extra[name]
            kl += (1 - memory) * inference.importance_kl(target, log_probs, log_proposal)
            return jnp.where(some_mass, kl, extra[name])

        proposal_kl = remember("proposal_kl", log_proposal)
        policy_kl = remember("policy_kl", log_probs)
        proposal = losses.adapt_proposal(
            extra["proposal"], trainable["policy"], proposal_kl=proposal_kl, policy_kl=policy_kl
        )
        return {
            "proposal": proposal,
            "z": z,
            "proposal_kl": jnp.minimum(proposal_kl, policy_kl),
            "policy_kl": policy_kl,
        }

    return Method(start, draw, loss, after, by_target=True)


def _running_z(past: tuple[Array, Array], log_weights: Array) -> tuple[Array, Array]:
    """The mean weight over all batches so far, this one among them, and their number."""
    z, count = past
    estimate = jnp.mean(jnp.exp(log_weights))
    return z + (estimate - z) / (count + 1), count + 1


def _log(z: Array) -> Array:
    """Log Z; while no sample had mass, as if Z were 1e-6."""
    return jnp.log(jnp.maximum(z, 1e-6))


def _ppo(world: World, drawn: Any) -> Method:
    """PPO on tokens; the value function is a second copy of the model, its logit 0 the value."""
    tokens, mask = world.space

    def values_of(params: Params) -> Array:
        """Of the state in which each token is chosen, `[D, T]`."""
        return jnp.pad(world.lm.apply(params, tokens)[:, :-1, 0], ((0, 0), (1, 0)))

    def start(problem: Problem) -> tuple[Any, Any]:
        return {"policy": problem.params, "value": problem.params}, ()

    def draw(problem: Problem, trainable: Any, extra: Any, key: Key) -> Any:
        at = drawn(problem, trainable, extra, key)
        behaviour = policy_tokens(world, trainable["policy"])[at]
        rewards = losses.kl_penalised_rewards(
            behaviour,
            policy_tokens(world, problem.params)[at],
            problem.rewards[at],
            mask[at],
            beta=problem.beta,
        )
        values = values_of(trainable["value"])[at]
        advantages = losses.generalised_advantages(rewards, values, mask[at])
        return at, behaviour, losses.whiten(advantages, mask[at]), advantages + values

    def loss(problem: Problem, trainable: Any, batch: Any) -> Array:
        at, behaviour, advantages, targets = batch
        token_log_probs = policy_tokens(world, trainable["policy"])[at]
        surrogate = losses.ppo_loss(token_log_probs, behaviour, advantages, mask[at])
        value = losses.value_loss(values_of(trainable["value"])[at], targets, mask[at])
        return jnp.mean(surrogate + VALUE_COEFFICIENT * value)

    return Method(start, draw, loss, epochs=PPO_EPOCHS)


def _pairs(world: World, start: Any, batch_size: int, loss: Callable[..., Array]) -> Method:
    """Fresh comparisons of pairs drawn uniformly; the raters' law is q(x) ~ exp r(x)."""

    def draw(problem: Problem, trainable: Any, extra: Any, key: Key) -> Any:
        first_key, shift_key, choice_key = jax.random.split(key, 3)
        size = len(problem.rewards)
        first = jax.random.randint(first_key, (batch_size,), 0, size)
        other = (first + jax.random.randint(shift_key, (batch_size,), 1, size)) % size
        odds = problem.rewards[first] - problem.rewards[other]
        wins = jax.random.bernoulli(choice_key, jax.nn.sigmoid(odds))
        return jnp.where(wins, first, other), jnp.where(wins, other, first)

    def mean_loss(problem: Problem, trainable: Any, batch: Any) -> Array:
        log_probs = policy(world, trainable["policy"])
        chosen, rejected = batch
        return jnp.mean(loss(problem, log_probs, chosen, rejected))

    return Method(start, draw, mean_loss)


def _dpo(problem: Problem, log_probs: Array, chosen: Array, rejected: Array) -> Array:
    ref = problem.log_p0
    return losses.dpo_loss(
        log_probs[chosen], log_probs[rejected], ref[chosen], ref[rejected], beta=problem.beta
    )


def _ilhf(problem: Problem, log_probs: Array, chosen: Array, rejected: Array) -> Array:
    pair = jnp.stack([log_probs[chosen], log_probs[rejected]], axis=-1)
    return losses.ilhf_loss(pair, jnp.zeros(chosen.shape, int))
