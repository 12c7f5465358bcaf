"""What the frozen model says of every text, computed once: features, hidden states, log-probs."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import run_folder, sources
from experiments.common.binary import UsageError
from experiments.common.chunks import compiler_options
from experiments.finetune.baselines import Item
from experiments.finetune.scoring import weights_hash
from shatter import data, documents, models
from shatter.numerics import masked_mean
from shatter.types import Array, Params

BATCH_SIZE = 32


class Frozen(NamedTuple):
    """The frozen model."""

    config: models.TransformerConfig
    params: Params
    tokenizer: models.Tokenizer


def load_frozen(name: str, data_dir: str | None) -> Frozen:
    """Opens the model folder.

    Raises:
      UsageError: if it cannot be opened; the message says what to pass.
    """
    try:
        folder = name
        if name == "stories260k" and not Path(name).exists():
            files = ("config", "generation_config", "tokenizer", "tokenizer_config", "weights")
            found = [sources.locate(f"stories260k_{file}", data_dir) for file in files]
            folder = str(found[0].parent)
        config, params, tokenizer = models.load_pretrained(folder, dtype="float32")
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise UsageError(f"--model_name_or_path={name}: {error}") from error
    if tokenizer is None:
        raise UsageError(f"{folder} has no tokenizer.json: put that of the model beside it")
    return Frozen(config, params, tokenizer)


def feature_table(
    model: Frozen, items: Sequence[Item], *, max_length: int, file: Path
) -> dict[str, np.ndarray]:
    """Features and log-prob of every item, kept in a file.

    Args:
      model: the frozen model.
      items: N texts, each with its prompt.
      max_length: tokens of prompt and text, at most.
      file: an .npz; made anew where it is of other items, another model or another length.

    Returns:
      features: `[N, L D]`, `layer_features`.
      log_prob: `[N]`, the mean log-prob of a token of the text, nats.

    Raises:
      UsageError: if the file is damaged, or a text cannot be encoded.
    """
    wanted = np.array(_digest(model, items, max_length))
    if file.exists():
        found = run_folder.load_arrays(file)
        if found.pop("digest", None) == wanted:
            return found

    def of_batch(params: Params, tokens: Array, mask: Array, valid: Array) -> dict[str, Array]:
        logits = models.transformer(model.config).apply(params, tokens, valid=valid)
        return {
            "features": layer_features(model.config, params, tokens, mask, valid),
            "log_prob": mean_log_prob(logits, tokens, mask),
        }

    table = _over_items(model, items, of_batch, max_length, data.length_buckets(max_length))
    run_folder.save_arrays(file, {**table, "digest": wanted})
    return table


def hidden_table(model: Frozen, items: Sequence[Item], *, max_length: int) -> dict[str, np.ndarray]:
    """What enters the last block, for every item: all that adapters on it need.

    Args:
      model: the frozen model.
      items: N texts, each with its prompt.
      max_length: T, tokens of prompt and text, at most.

    Returns:
      hidden: `[N, T, D]`. tokens: int `[N, T]`. mask: bool `[N, T]`, true on the text's tokens.
      valid: bool `[N, T]`, false on padding. log_prob: `[N]`, as in `feature_table`.

    Raises:
      UsageError: if a text cannot be encoded.
    """
    return _over_items(model, items, partial(hidden_rows, model.config), max_length, [max_length])


def hidden_rows(
    config: models.TransformerConfig, params: Params, tokens: Array, mask: Array, valid: Array
) -> dict[str, Array]:
    """Rows of `hidden_table` from documents `[B, T]`."""
    layers = models.split_layers(config, config.num_layers - 1)
    hidden = layers.lower(params, tokens, valid=valid)
    logits = layers.upper.apply(layers.upper_params(params), hidden, valid=valid)
    log_prob = mean_log_prob(logits, tokens, mask)
    columns = {"tokens": tokens, "mask": mask, "valid": valid}
    return {"hidden": hidden, **columns, "log_prob": log_prob}


def layer_features(
    config: models.TransformerConfig, params: Params, tokens: Array, mask: Array, valid: Array
) -> Array:
    """The mean over a text's tokens of what leaves each block, through the final norm.

    Args:
      config: of the transformer.
      params: its parameters.
      tokens: int `[B, T]`.
      mask: bool `[B, T]`, true on the text's tokens.
      valid: bool `[B, T]`, false on padding.

    Returns:
      `[B, L D]`, the first block's D numbers first.
    """
    means = []
    for depth in range(1, config.num_layers + 1):
        lm = models.transformer(dataclasses.replace(config, num_layers=depth))
        assert lm.features is not None
        blocks = jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["params"]["blocks"])
        part = {**params, "params": {**params["params"], "blocks": blocks}}
        features = lm.features(part, tokens, valid=valid)
        means.append(masked_mean(features, mask[..., None], axis=-2))
    return jnp.concatenate(means, axis=-1)


def mean_log_prob(logits: Array, tokens: Array, mask: Array) -> Array:
    """The mean log-prob of a text's tokens: logits `[..., T, V]`, tokens, mask `[..., T]`; nats."""
    return documents.log_prob(logits, tokens, mask) / jnp.sum(mask, axis=-1)


def _over_items(
    model: Frozen,
    items: Sequence[Item],
    function: Callable[..., dict[str, Array]],
    max_length: int,
    buckets: Sequence[int],
) -> dict[str, np.ndarray]:
    """`function(params, tokens, mask, valid)` of every item, by batches of few shapes."""
    rows = [data.Row(prompt, (text,), (0,)) for prompt, text in items]
    try:
        encoded, _ = data.encode_rows(rows, model.tokenizer, max_length=max_length)
    except ValueError as error:
        raise UsageError(f"a text cannot be encoded: {error}") from error
    jitted: Any = jax.jit(function, compiler_options=compiler_options())
    table: dict[str, np.ndarray] = {}
    lengths = [row.length for row in encoded]
    for length, numbers in data.plan_batches(
        lengths, batch_size=BATCH_SIZE, seed=0, epoch=0, buckets=buckets
    ):
        batch = data.collate(encoded, numbers, length=length, num_slots=1)
        arrays = (batch.tokens[:, 0], batch.mask[:, 0], batch.valid[:, 0])
        real = batch.row >= 0
        for name, values in jitted(model.params, *arrays).items():
            some = np.asarray(values)[real]
            if name not in table:
                table[name] = np.zeros((len(items), *some.shape[1:]), some.dtype)
            table[name][batch.row[real]] = some
    return table


def _digest(model: Frozen, items: Sequence[Item], max_length: int) -> str:
    digest = hashlib.sha256(f"{weights_hash(model.params)}{model.config}{max_length}".encode())
    digest.update(model.tokenizer.fingerprint().encode())
    for item in items:
        digest.update("\0".join(item).encode() + b"\1")
    return digest.hexdigest()
