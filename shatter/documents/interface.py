"""The shattered interface: one language model as policy, reward and transition.

The state is the document so far and the action is the next token. The transition appends it. The
policy is the language model, and the reward is log pi(action | state), so that the return of a
document is log pi(x).
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
    """The policy, reward and transition of a language model.

    A state is `tokens[..., T]`, of which the first `length[...]` count.

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
    """Returns a language model as a decision process: its policy, reward and transition.

    Source: our reading of Xu et al., Shattering the Agent-Environment Interface for Fine-Tuning
    Inclusive Language Models, https://arxiv.org/abs/2305.11455.

    Args:
      lm: the language model.

    Returns:
      The three functions, of the same parameters.
    """

    def policy(params: Params, tokens: Array, length: Array) -> Array:
        chex.assert_equal_shape([tokens[..., 0], length])
        logits = lm.apply(params, tokens)  # a causal model ignores the tokens after the state
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
    """Returns the next-token log-probs of every prefix of a response: the policy as a table.

    Args:
      lm: the language model.
      params: its parameters.
      vocab_size: V, number of tokens.
      max_length: largest number of response tokens.
      prompt: the prompt's tokens, at least one.

    Returns:
      A list over prefix lengths t = 0..max_length - 1 of `[V^t, V]`, nats, with the prefixes in
      lexicographic order. It includes prefixes with an EOS, which no document reaches.
    """
    states = [jnp.asarray([prompt])]
    for length in range(1, max_length):
        tokens, _ = enumerate_documents(vocab_size=vocab_size, max_length=length, prompt=prompt)
        states.append(tokens)
    return [jax.nn.log_softmax(finite_logs(lm.apply(params, tokens)[:, -1])) for tokens in states]


def soft_values(
    rewards: list[Array], *, temperature: float | Array = 1.0, eos: int | None = None
) -> tuple[list[Array], list[Array]]:
    """Returns soft values and the soft-optimal policy, by recursion from the ends to the root.

    `V(s) = tau log sum_a exp((r(s, a) + V(s.a)) / tau)`, `V(end) = 0`,
    `log pi*(a | s) = (r(s, a) + V(s.a) - V(s)) / tau`.

    With the rewards log pi(a | s) and tau = 1, V is 0 everywhere and pi* = pi: nothing is left to
    optimise. At another tau, pi* is the sequence-tempered law. With the rewards beta log p0(a | s),
    plus r(x) for the last action, and tau = beta, pi* is the posterior p0 exp(r / beta) / Z of
    KL-regularised RL, and V(root) = beta log Z.

    Source: Levine, Reinforcement Learning and Control as Probabilistic Inference,
    https://arxiv.org/abs/1805.00909; Korbak, Perez, Buckley, https://arxiv.org/abs/2205.11275.

    Args:
      rewards: a list over prefix lengths of `[V^t, V]`, in the layout of `prefix_log_probs`. A
        reward of -inf forbids the action, and the policy avoids prefixes without an allowed action.
      temperature: tau > 0.
      eos: the action that ends a document; None = documents end at the last level.

    Returns:
      The values, a list of `[V^t]`, and the log-probs of the soft-optimal policy, a list of
      `[V^t, V]`.

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
    """Returns the exact optimum of KL-regularised RL as a next-token policy, with soft values.

    `V(s) = beta log sum_a p0(a | s) exp(V(s.a) / beta)`, `V(x) = r(x)` for complete documents,
    `p*(a | s) = p0(a | s) exp((V(s.a) - V(s)) / beta)`, `V(root) = beta log Z`.

    Source: Korbak, Perez, Buckley, RL with KL penalties is better viewed as Bayesian inference,
    https://arxiv.org/abs/2205.11275; the recursion: Levine, https://arxiv.org/abs/1805.00909.

    Args:
      ref_policy: log p0, a list over prefix lengths of `[V^t, V]` from `prefix_log_probs`, nats.
      rewards: `[D]`, r of every document.
      tokens: int `[D, P + max_length]`, every document, from `enumerate_documents`.
      mask: bool `[D, P + max_length]`, true on the response's tokens.
      beta: KL coefficient, > 0.
      eos: the token that ends a document; None = documents end at the last level.

    Returns:
      The values, a list of `[V^t]`, in the unit of r, and log p*, a list of `[V^t, V]`, nats.

    Raises:
      AssertionError: if the shapes do not fit or documents are missing.
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
    if eos is not None:  # t other tokens before EOS, for every t, or no EOS at all
        num_documents = sum((vocab_size - 1) ** t for t in range(max_length + 1))
    chex.assert_shape(rewards, (num_documents,))
    response = tokens[:, -max_length:]
    length = jnp.sum(mask, axis=1)
    rewards = at_least_float32(rewards)
    rewards_of = [beta * finite_logs(level) for level in ref_policy]
    state = jnp.zeros(len(tokens), int)  # the row of the prefix of length t: its digits in base V
    for t, level in enumerate(rewards_of):
        # Documents that do not end here get a row out of range, which "drop" ignores.
        ends_here = jnp.where(length == t + 1, state, len(level))
        rewards_of[t] = level.at[ends_here, response[:, t]].add(rewards, mode="drop")
        state = state * vocab_size + response[:, t]
    return soft_values(rewards_of, temperature=beta, eos=eos)
