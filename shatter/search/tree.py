"""Tree search over tokens by mctx: the model is the prior and the dynamics, a twist the value."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from shatter.documents import response_mask
from shatter.documents.continuation import continuation
from shatter.inference import Twist, TwistModel
from shatter.inference.twists import guide
from shatter.models import LanguageModel
from shatter.numerics import assert_positive, finite_logs
from shatter.search.base import Found, Reward, found, no_twist, num_rows, rewards_of
from shatter.search.tree_policies import TreePolicy, gumbel_muzero, import_mctx
from shatter.types import Array, Key, Params


class _Node(NamedTuple):
    """A document so far, as a node of the tree keeps it.

    Attributes:
      tokens: int `[T]`.
      token: int `[1]`, the last one.
      length: int `[]`, response tokens so far.
      is_open: bool `[]`, whether it has not ended.
      log_prob: `[]`, log p0 of it, nats.
      past: what the model has read.
      guide_past: what the twist has read.
      actions: int `[A]`, the likeliest next tokens.
      log_probs: `[A]`, their log-probs under the model, nats.
      log_twists: `[A]`, log psi of the document with each of them, nats.
    """

    tokens: Array
    token: Array
    length: Array
    is_open: Array
    log_prob: Array
    past: Any
    guide_past: Any
    actions: Array
    log_probs: Array
    log_twists: Array


def tree_search(
    lm: LanguageModel,
    params: Params,
    key: Key,
    prompt: Array,
    *,
    reward: Reward,
    beta: float | Array,
    twist: Twist | TwistModel | None = None,
    policy: TreePolicy | None = None,
    top_k: int = 16,
    budget: int,
    max_length: int,
    eos: int | None = None,
    valid: Array | None = None,
) -> Found:
    """Finds one response, each token by a tree of `budget // max_length - 1` simulations.

    A node is a document so far, with the model's cache; its children are the `top_k` likeliest next
    tokens, their prior is the model's law over these, and a node's value is its log psi, which also
    stands for children that were not visited yet. A document that ends gives r / beta, and nothing
    after it; of the ended documents in the tree only the one that is said counts. Documents of
    different lengths are compared, so the twist has to be right in its factor at each length too
    (see `losses.contrastive_twist_loss`). The tree of a token is not kept for the next one, and
    simulations that end in a document that is known need no law, so that less than the budget may
    be spent. Every node keeps a cache of its own, so memory grows with the simulations. Under
    `jax.vmap` both sides of every condition are computed: `checkify` one prompt at a time.

    Args:
      lm: the language model p0.
      params: its parameters.
      key: a typed key.
      prompt: int `[P]`, P >= 1.
      reward: see `Reward`.
      beta: KL coefficient, > 0: rewards are divided by it.
      twist: log psi(s.a) of every next token, nats: the value in units of beta; None = 0, where
        only documents that end within the tree tell something, and an unfinished one is worth a
        reward of 0, so that rewards should be centred.
      policy: how the tree is searched; None = `gumbel_muzero()`.
      top_k: A, the number of tokens that may follow a document.
      budget: largest number of laws of a next token.
      max_length: largest number of response tokens.
      eos: the token that ends a response; None = every response has `max_length` tokens.
      valid: bool `[P]`, false on the prompt's padding; None = all true.

    Returns:
      One response.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ImportError: if mctx is not installed.
      ValueError: if the budget is below two laws a token, a number is not positive, or `eos` is not
        a token of the vocabulary.
    """
    assert_positive(beta=beta)
    mctx = import_mctx()
    policy = gumbel_muzero() if policy is None else policy
    chex.assert_type(prompt, int)
    chex.assert_rank(prompt, 1)
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, found {top_k}")
    num_simulations = num_rows(budget, max_length, laws_per_token=2) - 1
    prompt_length = prompt.shape[0]
    open_node = _opening(lm, params, prompt, valid, twist, top_k, max_length, eos)

    def mask_of(tokens: Array) -> Array:
        return response_mask(tokens, prompt_length=prompt_length, eos=eos)

    def gain_of(tokens: Array) -> Array:
        return (rewards_of(reward, tokens[None], mask_of(tokens[None]))[0] / beta).astype(float)

    def expand(_: tuple, key: Key, action: Array, embedding: Any) -> tuple[Any, Any]:
        """Returns the child of a node, as mctx wants it; there is one tree, so B is 1."""
        del key
        node: _Node = jax.tree.map(lambda leaf: leaf[0], embedding)
        child = open_node.child(node, action[0])
        ends = node.is_open & ~child.is_open
        # The reward of a document that goes on is not computed, unless lanes are vmapped.
        gain = jax.lax.cond(ends, gain_of, lambda tokens: jnp.zeros(()), child.tokens)
        value = jnp.where(child.is_open, node.log_twists[action[0]], 0.0)
        output = mctx.RecurrentFnOutput(
            reward=gain[None],
            discount=child.is_open.astype(float)[None],
            prior_logits=child.log_probs[None],
            value=value[None],
        )
        return output, jax.tree.map(lambda leaf: leaf[None], child)

    def choose(key: Key, node: _Node) -> tuple[Array, Array]:
        """Returns the index of the next token, and the laws that the tree needed."""
        root = mctx.RootFnOutput(
            prior_logits=node.log_probs[None],
            value=_value(node, twist)[None],
            embedding=jax.tree.map(lambda leaf: leaf[None], node),
        )
        output = policy(
            key,
            root,
            expand,
            num_simulations=num_simulations,
            num_actions=node.actions.shape[0],
            max_depth=max_length,
            is_guided=twist is not None,
        )
        # Every node with an open document needed a law, that of the root too.
        tree = output.search_tree
        spent = jnp.sum((tree.node_visits[0] > 0) & tree.embeddings.is_open[0])
        return output.action[0].astype(int), spent

    def step(carry: tuple[_Node, Array], t: Array) -> tuple[tuple[_Node, Array], None]:
        node, num_tokens = carry
        nothing = lambda key, node: (jnp.zeros((), int), jnp.zeros((), int))
        action, spent = jax.lax.cond(
            node.is_open, choose, nothing, jax.random.fold_in(key, t), node
        )
        return (open_node.child(node, action), num_tokens + spent), None

    carry = (open_node.root, jnp.zeros((), int))
    (node, num_tokens), _ = jax.lax.scan(step, carry, jnp.arange(max_length))
    tokens = node.tokens[None]
    return found(reward, tokens, mask_of(tokens), node.log_prob[None], num_tokens)


def _value(node: _Node, twist: Twist | TwistModel | None) -> Array:
    """Returns log psi of a document, by its likeliest next tokens; 0 without a twist."""
    if twist is None:
        return jnp.zeros_like(node.log_prob)
    return jax.nn.logsumexp(jax.nn.log_softmax(node.log_probs) + node.log_twists)


class _Opening(NamedTuple):
    """The node of the prompt, and `(node, action index) -> node` with one more token."""

    root: _Node
    child: Callable[[_Node, Array], _Node]


def _opening(
    lm: LanguageModel,
    params: Params,
    prompt: Array,
    valid: Array | None,
    twist: Twist | TwistModel | None,
    top_k: int,
    max_length: int,
    eos: int | None,
) -> _Opening:
    """Returns the root of a tree and how its nodes are extended."""
    prompt_length = prompt.shape[0]
    row_valid = None if valid is None else valid[None]
    past, token, read, _ = continuation(lm, params, prompt[None], row_valid, 1, max_length)
    twist = no_twist(lm, params) if twist is None else twist
    guiding = guide(twist, prompt, valid, 1, max_length)
    fill = 0 if eos is None else eos

    def opened(
        tokens: Array, token: Array, length: Array, log_prob: Array, past: Any, guide_past: Any
    ) -> _Node:
        """Returns an open document with the laws of its next token."""
        logits, past = read(past, token, length)
        log_twists, guide_past = guiding.step(guide_past, tokens[None], token, length)
        chex.assert_equal_shape([logits, log_twists])
        if not 0 <= fill < logits.shape[1]:
            raise ValueError(f"eos must be a token, 0 <= eos < {logits.shape[1]}, found {eos}")
        log_p0 = jax.nn.log_softmax(finite_logs(logits[0])).astype(float)
        log_probs, actions = jax.lax.top_k(log_p0, min(top_k, log_p0.shape[0]))
        log_twists = finite_logs(log_twists[0]).astype(float)[actions]
        return _Node(
            tokens=tokens,
            token=token,
            length=length,
            is_open=jnp.array(True),
            log_prob=log_prob,
            past=past,
            guide_past=guide_past,
            actions=actions,
            log_probs=log_probs,
            log_twists=log_twists,
        )

    def child(node: _Node, action: Array) -> _Node:
        """Returns a document with one more token; one that has ended stays as it is."""
        token = jnp.where(node.is_open, node.actions[action], fill).astype(node.token.dtype)
        # What follows is filled too: an EOS fills the rest, and other tokens are overwritten.
        is_later = jnp.arange(node.tokens.shape[0]) >= prompt_length + node.length
        tokens = jnp.where(is_later, token.astype(node.tokens.dtype), node.tokens)
        length = jnp.minimum(node.length + 1, max_length)
        log_prob = node.log_prob + jnp.where(node.is_open, node.log_probs[action], 0.0)
        is_open = node.is_open & (length < max_length)
        if eos is not None:
            is_open = is_open & (token != eos)
        moved = node._replace(
            tokens=tokens,
            token=token[None],
            length=length,
            is_open=is_open,
            log_prob=log_prob,
        )
        read_on = lambda: opened(tokens, token[None], length, log_prob, node.past, node.guide_past)
        return jax.lax.cond(is_open, read_on, lambda: moved)

    row = jnp.pad(prompt, (0, max_length))
    zero = jnp.zeros((), int)
    return _Opening(opened(row, token, zero, jnp.zeros(()), past, guiding.past), child)
