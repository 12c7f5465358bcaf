"""Features of texts under a frozen model: some blocks, the mean and the last token, components."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.cache import cached_arrays
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import (
    BATCH_SIZE,
    Frozen,
    Item,
    Table,
    mean_log_prob,
    standardised,
    weights_hash,
)
from shatter.data.layouts import text_key
from shatter.models.transformer import forward
from shatter.numerics import masked_mean
from shatter.types import Array, Params

OVERSAMPLING, NUM_ITERATIONS = 20, 6  # directions more than wanted, and steps, of the iteration


def depths_of(num_layers: int, num_depths: int) -> tuple[int, ...]:
    """Returns the blocks to read, counted from 1: evenly spaced, the last one the model's last."""
    if num_depths >= num_layers:
        return tuple(range(1, num_layers + 1))
    return tuple(-(-num_layers * part // num_depths) for part in range(1, num_depths + 1))


def text_features(
    model: Frozen, items: Sequence[Item], *, num_depths: int, max_length: int
) -> Table:
    """Computes features and the log-prob of every text, or reads them from the user's cache.

    Args:
      model: the frozen model.
      items: N texts, each with its prompt.
      num_depths: of how many blocks the output is read, at most all.
      max_length: the largest number of tokens of prompt and text.

    Returns:
      features: `[N, F]`: after each block of `depths_of`, after the final norm, the mean over the
      text's tokens and the last one's. log_prob: `[N]`, the mean log-prob of a token, nats.

    Raises:
      UsageError: if a text cannot be encoded.
    """
    depths = depths_of(model.config.num_layers, num_depths)
    kind = f"{weights_hash(model.params)}{model.config}{max_length}{depths}"
    digest = hashlib.sha256(f"{kind}{model.tokenizer.fingerprint()}".encode())
    keys = [f"{text_key(prompt)}\0{text_key(text)}\1" for prompt, text in items]
    order = sorted(range(len(items)), key=keys.__getitem__)  # other seeds meet texts in other order
    for number in order:
        digest.update(keys[number].encode())
    name = f"features/{digest.hexdigest()}.npz"
    sorted_items = [items[number] for number in order]
    found = cached_arrays(name, lambda: _computed(model, sorted_items, depths, max_length))
    places = np.argsort(order)
    return {part: values[places] for part, values in found.items()}


def components(features: np.ndarray, in_pool: np.ndarray, number: int) -> np.ndarray:
    """Returns the first principal components, of mean square 1 together over the pool's texts.

    Directions and scales are those of the pool's texts, each feature first scaled to deviation 1.
    They are found by subspace iteration, whose time is that of a few products with the features.

    Args:
      features: `[N, F]`.
      in_pool: bool `[N]`, the texts that may be looked at.
      number: P, of the components; 0 or more than there can be = all features, standardised.

    Returns:
      `[N, P]`, or `[N, F]`.
    """
    scaled = standardised(features, features[in_pool]).astype(np.float32)
    if not 0 < number < min(scaled[in_pool].shape):
        return scaled
    pool = scaled[in_pool]
    width = min(number + OVERSAMPLING, *pool.shape)
    start = np.random.default_rng(0).normal(size=(pool.shape[1], width))
    basis = start.astype(np.float32)
    for _ in range(NUM_ITERATIONS):
        basis, _ = np.linalg.qr(pool.T @ (pool @ basis))
    *_, rotation = np.linalg.svd(pool @ basis, full_matrices=False)
    found = scaled @ (basis @ rotation[:number].T)
    return found / np.sqrt(np.mean(np.square(found[in_pool])))


@functools.cache
def _program(config: models.TransformerConfig, depths: tuple[int, ...]) -> Callable[..., Table]:
    """Compiles `(params, tokens, mask, valid) -> rows`."""

    def of_batch(params: Params, tokens: Array, mask: Array, valid: Array) -> Table:
        return feature_rows(config, depths, params, tokens, mask, valid)

    return jax.jit(of_batch, compiler_options=compiler_options())


def feature_rows(
    config: models.TransformerConfig,
    depths: Sequence[int],
    params: Params,
    tokens: Array,
    mask: Array,
    valid: Array,
) -> Table:
    """Computes rows of `text_features` from documents `[B, T]`, in one pass through the blocks."""
    inputs, parts = tokens, []
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    for first, depth in zip((0, *depths), depths, strict=False):
        blocks = jax.tree.map(lambda leaf: leaf[first:depth], params["params"]["blocks"])  # noqa: B023
        part = {**params, "params": {**params["params"], "blocks": blocks}}
        found = forward(models.select_layers(config, first, depth), part, inputs, valid)
        inputs, features = found.hidden, found.features
        ends = jnp.take_along_axis(features, last[:, None, None], axis=1)[:, 0]
        parts += [masked_mean(features, mask[..., None], axis=-2), ends]
    log_prob = mean_log_prob(found.logits, tokens, mask)
    return {"features": jnp.concatenate(parts, axis=-1), "log_prob": log_prob}


def _computed(
    model: Frozen, items: Sequence[Item], depths: tuple[int, ...], max_length: int
) -> dict[str, np.ndarray]:
    rows = [data.Row(prompt, (text,), (0,)) for prompt, text in items]
    try:
        encoded, _ = data.encode_rows(rows, model.tokenizer, max_length=max_length)
    except ValueError as error:
        raise UsageError(f"a text cannot be encoded: {error}") from error
    run, table = _program(model.config, depths), dict[str, Any]()
    for length, numbers in data.plan_batches(
        [row.length for row in encoded],
        batch_size=BATCH_SIZE,
        seed=0,
        epoch=0,
        buckets=data.length_buckets(max_length),
    ):
        batch = data.collate(encoded, numbers, length=length, num_slots=1)
        arrays = (batch.tokens[:, 0], batch.mask[:, 0], batch.valid[:, 0])
        real = batch.row >= 0
        for part, padded in run(model.params, *arrays).items():
            values = np.asarray(padded)[real]
            table.setdefault(part, np.zeros((len(items), *values.shape[1:]), values.dtype))
            table[part][batch.row[real]] = values
    return table
