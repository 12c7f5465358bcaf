"""Stacked heads on the features of a frozen model, and the multi-layer perceptron they use."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from shatter.ensembles.base import anchor_penalty, gaussian_draws
from shatter.ensembles.independent import Start, check_members, exponential_weights, start_at
from shatter.types import Array, Ensemble, Key, Params


def heads(
    num_features: int,
    *,
    num_members: int,
    prior_scale: float | Array,
    hidden: Sequence[int] = (),
    start: Start = "draw",
) -> Ensemble:
    """Returns M heads that score features, each with its own prior draw and its own data weights.

    `score_m(x) = c f(x; theta_m)`, c = prior_scale, f as in `apply_mlp`: linear without hidden
    layers. Member m minimises `sum_i w_mi nll_i(theta) + |theta - theta_m|^2 / 2`,
    `theta_m ~ N(0, I)`, `w_mi ~ Exp(1)`, as in `anchored`. Before data a score has mean 0 and
    variance `c^2 (1 + (s - 1) / 2^L)`, s the mean square of the features' entries, L the number of
    hidden layers: for features of mean square 1 its standard deviation is c.

    Scores are utilities. The output has no bias, because choices by Luce's rule ignore a shift.

    Source: Pearce et al., Uncertainty in Neural Networks: Approximately Bayesian Ensembling,
    https://arxiv.org/abs/1810.05546.

    Args:
      num_features: D.
      num_members: M.
      prior_scale: c > 0, nats.
      hidden: the widths of the hidden layers.
      start: where training starts: "draw", at theta_m, or "centre", there but with a last layer of
        0, so that all scores are 0 until there is data.

    Returns:
      An ensemble of scores: its `apply` takes features `[..., D]`, best of mean square 1, and
      returns scores `[...]`, nats. `valid` changes nothing, since features are scored one by one.
      `own` are M networks, `shared` is empty.

    Raises:
      ValueError: if there is no member, no feature, a layer of no width, or no such start.
    """
    check_members(num_members)
    check_widths(num_features, *hidden)

    def init(key: Key) -> tuple[Params, Params]:
        return (), gaussian_draws(key, zero_mlp(num_features, hidden, 1), 1.0, num_members)

    def apply(shared: Params, own: Params, inputs: Array, *, valid: Array | None = None) -> Array:
        del shared, valid
        return prior_scale * apply_mlp(own, inputs)[..., 0]

    return Ensemble(
        init=init,
        apply=apply,
        penalty=lambda own, anchor: anchor_penalty(own, anchor, 1.0),
        observation_weights=exponential_weights(num_members),
        start=start_at(
            start, lambda anchor: [*anchor[:-1], jax.tree.map(jnp.zeros_like, anchor[-1])]
        ),
    )


def zero_mlp(num_inputs: int, hidden: Sequence[int], num_outputs: int) -> Params:
    """Returns the parameters of a multi-layer perceptron, all 0, the mean of their prior.

    Args:
      num_inputs: D.
      hidden: the widths of the hidden layers.
      num_outputs: O.

    Returns:
      A list of layers; the hidden ones with a "kernel" `[fan-in, width]` and a "bias" `[width]`,
      the last with a "kernel" only.
    """
    widths = [num_inputs, *hidden]
    layers = [
        {"kernel": jnp.zeros((fan_in, width)), "bias": jnp.zeros(width)}
        for fan_in, width in zip(widths, hidden, strict=False)
    ]
    return [*layers, {"kernel": jnp.zeros((widths[-1], num_outputs))}]


def apply_mlp(params: Params, inputs: Array) -> Array:
    """Applies a multi-layer perceptron that is scaled for parameters of unit variance.

    `h -> relu(h W / sqrt(fan-in) + b)` in a hidden layer, `h W / sqrt(fan-in)` in the last. Where
    all parameters are independent N(0, 1), inputs of mean square 1 give outputs of mean 0 and
    variance exactly 1, at any width and depth: weights and bias add up to variance 2, of which ReLU
    keeps mean square 1.

    Args:
      params: what `zero_mlp` returns, `[D] -> [O]`.
      inputs: `[..., D]`.

    Returns:
      `[..., O]`.

    Raises:
      AssertionError: if the inputs are not floating or have another width.
    """
    chex.assert_type(inputs, float)
    chex.assert_axis_dimension(inputs, -1, params[0]["kernel"].shape[0])
    *hidden, last = params

    def linear(kernel: Array, values: Array) -> Array:
        return values @ kernel / jnp.sqrt(kernel.shape[0])

    def one(values: Array) -> Array:
        for layer in hidden:
            values = jax.nn.relu(linear(layer["kernel"], values) + layer["bias"])
        return linear(last["kernel"], values)

    return jnp.vectorize(one, signature="(d)->(o)")(inputs)


def check_widths(*widths: int) -> None:
    """Raises an error if a layer has no width.

    Args:
      widths: the sizes of the layers.

    Raises:
      ValueError: if a width is below 1.
    """
    if min(widths) < 1:
        raise ValueError(f"every layer needs a width >= 1, found {list(widths)}")
