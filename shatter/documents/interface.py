"""The shattered interface: one language model is policy, reward and transition.

State: a document so far. Action: the next token. Transition: append, known exactly. Policy: the
language model. Reward: log pi(action | state), so that a document's return is log pi(x).
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.documents.enumeration import enumerate_documents
from shatter.models import LanguageModel
from shatter.numerics import LOG_ZERO, assert_positive, at_least_float32, finite_logs
from shatter.types import Array, Params


class Interface(NamedTuple):
    """Three faces of one params pytree. A state is `tokens[..., T]`, of which `length[...]` count.

    Attributes:
      policy: `(params, tokens[..., T], length[...]) -> log_probs[..., V]`, the law of the next
        token, nats.
      reward: `(params, tokens[..., T], length[...], action[...]) -> [...]`, nats.
      transition: `(tokens[..., T], length[...], action[...]) -> (tokens, length)`.
    """

    policy: Callable[[Params, Array, Array], Array]
    reward: Callable[[Params, Array, Array, Array], Array]
    transition: Callable[[Array, Array, Array], tuple[Array, Array]]


def interface(lm: LanguageModel) -> Interface:
    """Opens a language model as a decision process.

    Source: our reading of Xu et al., Shattering the Agent-Environment Interface for Fine-Tuning
    Inclusive Language Models, https://arxiv.org/abs/2305.11455.

    Args:
      lm: the language model.

    Returns:
      Its policy, reward and transition.
    """

    def policy(params: Params, tokens: Array, length: Array) -> Array:
        chex.assert_equal_shape([tokens[..., 0], length])
        logits = lm.apply(params, tokens)  # causal: what stands after the state does not matter
        last = jnp.take_along_axis(logits, (length - 1)[..., None, None], axis=-2)[..., 0, :]
        return jax.nn.log_softmax(finite_logs(last))

    def reward(params: Params, tokens: Array, length: Array, action: Array) -> Array:
        log_probs = policy(params, tokens, length)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def transition(tokens: Array, length: Array, action: Array) -> tuple[Array, Array]:
        chex.assert_equal_shape([tokens[..., 0], length, action])
        here = jax.nn.one_hot(length, tokens.shape[-1], dtype=bool)
        return jnp.where(here, action[..., None], tokens), length + 1

    return Interface(policy, reward, transition)


def prefix_log_probs(
    lm: LanguageModel,
    params: Params,
    *,
    vocab_size: int,
    max_length: int,
    prompt: tuple[int, ...] = (0,),
) -> list[Array]:
    """Next-token log-probs at every prefix of a response: the policy as a table.

    Args:
      lm: the language model.
      params: its parameters.
      vocab_size: V, number of tokens.
      max_length: largest number of response tokens.
      prompt: the prompt's tokens, at least one.

    Returns:
      A list over prefix lengths t = 0..max_length - 1 of `[V^t, V]`, nats, prefixes in
      lexicographic order. Prefixes that hold EOS are there too; nothing reaches them.
    """
    states = [jnp.asarray([prompt])]
    for length in range(1, max_length):
        tokens, _ = enumerate_documents(vocab_size=vocab_size, max_length=length, prompt=prompt)
        states.append(tokens)
    return [jax.nn.log_softmax(finite_logs(lm.apply(params, tokens)[:, -1])) for tokens in states]


def soft_values(
    rewards: list[Array], *, temperature: float | Array = 1.0, eos: int | None = None
) -> tuple[list[Array], list[Array]]:
    """Soft values and the soft-optimal policy by backward recursion over the tree of prefixes.

    `V(s) = tau log sum_a exp((r(s, a) + V(s.a)) / tau)`, `V(end) = 0`,
    `log pi*(a | s) = (r(s, a) + V(s.a) - V(s)) / tau`.

    With r(s, a) = log pi(a | s) at tau = 1, V is 0 everywhere and pi* = pi: nothing is left to
    optimise. At another tau, pi* is the sequence-tempered law. With
    r(s, a) = beta log p0(a | s), plus r(x) on the last action, at tau = beta, it is the posterior
    p0 exp(r / beta) / Z of KL-regularised RL with V(root) = beta log Z.

    Source: Levine, Reinforcement Learning and Control as Probabilistic Inference,
    https://arxiv.org/abs/1805.00909; Korbak, Perez, Buckley, https://arxiv.org/abs/2205.11275.

    Args:
      rewards: a list over prefix lengths of `[V^t, V]`, as `prefix_log_probs` gives them; -inf
        forbids an action, and a prefix from which every action is forbidden is avoided.
      temperature: tau > 0.
      eos: the action that ends a document; None = it ends at the last level.

    Returns:
      values, a list of `[V^t]`, and log-probs of the soft-optimal policy, a list of `[V^t, V]`.

    Raises:
      ValueError: if the temperature is not above 0.
    """
    assert_positive(temperature=temperature)
    values: list[Array] = []
    policy: list[Array] = []
    for level in map(at_least_float32, reversed(rewards)):
        after = values[0].reshape(level.shape) if values else jnp.zeros_like(level)
        if eos is not None:
            after = after.at[:, eos].set(0.0)
        action_values = jnp.maximum(level + after, LOG_ZERO)
        value = temperature * jax.nn.logsumexp(action_values / temperature, axis=1)
        values.insert(0, value)
        policy.insert(0, (action_values - value[:, None]) / temperature)
    return values, policy


def posterior_policy(
    ref_policy: list[Array],
    rewards: Array,
    tokens: Array,
    mask: Array,
    *,
    beta: float | Array,
    eos: int | None = None,
) -> tuple[list[Array], list[Array]]:
    """The exact optimum of KL-regularised RL as a next-token policy, by backward recursion.

    `V(s) = beta log sum_a p0(a | s) exp(V(s.a) / beta)`, `V(x) = r(x)` for whole documents,
    `p*(a | s) = p0(a | s) exp((V(s.a) - V(s)) / beta)`, `V(root) = beta log Z`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275; the recursion: Levine, https://arxiv.org/abs/1805.00909.

    Args:
      ref_policy: p0, a list over prefix lengths of `[V^t, V]`, of `prefix_log_probs`, nats.
      rewards: `[D]`, r of every document.
      tokens: int `[D, P + max_length]`, every document, of `enumerate_documents`.
      mask: bool `[D, P + max_length]`, true on the response's tokens.
      beta: KL coefficient, > 0.
      eos: the token that ends a document; None = it ends at the last level.

    Returns:
      values, a list of `[V^t]`, in the unit of r; and log p*, a list of `[V^t, V]`, nats.

    Raises:
      AssertionError: if the shapes do not fit or there are not all documents.
      ValueError: if beta is not above 0.
    """
    assert_positive(beta=beta)
    chex.assert_equal_shape([tokens, mask])
    chex.assert_equal_shape([tokens[:, 0], rewards])
    vocab_size, max_length = ref_policy[0].shape[-1], len(ref_policy)
    for t, level in enumerate(ref_policy):
        chex.assert_shape(level, (vocab_size**t, vocab_size))
    chex.assert_axis_dimension_gt(tokens, 1, max_length)
    num_documents = vocab_size**max_length
    if eos is not None:  # those that end after t other tokens, and those that never do
        num_documents = sum((vocab_size - 1) ** t for t in range(max_length + 1))
    chex.assert_shape(rewards, (num_documents,))
    response = tokens[:, -max_length:]
    length = jnp.sum(mask, axis=1)
    rewards = at_least_float32(rewards)
    rewards_of = [beta * finite_logs(level) for level in ref_policy]
    state = jnp.zeros(len(tokens), int)  # the prefix of length t, in base V
    for t, level in enumerate(rewards_of):
        ends_here = jnp.where(length == t + 1, state, len(level))  # else out of range: dropped
        rewards_of[t] = level.at[ends_here, response[:, t]].add(rewards, mode="drop")
        state = state * vocab_size + response[:, t]
    return soft_values(rewards_of, temperature=beta, eos=eos)
