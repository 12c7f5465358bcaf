"""Features and log-probs of texts under a frozen pretrained model, computed once and kept."""

import datetime
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, documents, models
from shatter.cli.common import run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.data.layouts import Text, text_key
from shatter.factored import FactoredLogits
from shatter.numerics import masked_mean
from shatter.types import Array, Params

BATCH_SIZE = 32

Item = tuple[Text, Text]
"""A prompt and a completion."""

Table = dict[str, Any]
"""Arrays `[N, ...]` about N texts, by name."""


class Frozen(NamedTuple):
    """A pretrained model that is not trained."""

    config: models.TransformerConfig
    params: Params
    tokenizer: models.Tokenizer


def load_frozen(
    name: str,
    *,
    chat_template: str | None = None,
    revision: str | None = None,
    date: datetime.datetime | None = None,
) -> Frozen:
    """Opens a model folder.

    Args:
      name: the value of `--model_name_or_path`.
      chat_template: the value of `--chat_template`: a file, or a name in
        `shatter.models.CHAT_TEMPLATES`; None = the tokenizer's own.
      revision: the branch, tag or commit of a model on the hub.
      date: the date for chat templates that ask for it; None = the clock's.

    Returns:
      The model, in float32.

    Raises:
      UsageError: if it cannot be opened; the message says what to pass.
    """
    try:
        config, params, tokenizer = models.load_pretrained(name, dtype="float32", revision=revision)
    except (OSError, ImportError, ValueError) as error:
        at = "" if revision is None else f" --model_revision={revision}"
        raise UsageError(f"--model_name_or_path={name}{at}: {error}") from error
    if tokenizer is None:
        raise UsageError(
            f"{name} has no tokenizer.json: put the model's own beside its config.json"
        )
    if chat_template is not None:
        tokenizer = with_chat_template(tokenizer, chat_template)
    return Frozen(config, params, tokenizer if date is None else tokenizer.with_date(date))


def with_chat_template(tokenizer: models.Tokenizer, template: str) -> models.Tokenizer:
    """Returns a tokenizer with another chat template.

    Args:
      tokenizer: the tokenizer.
      template: the value of `--chat_template`: a file, or a name in
        `shatter.models.CHAT_TEMPLATES`.

    Returns:
      The tokenizer with the template.

    Raises:
      UsageError: if there is no such file or name, or the template cannot be read.
    """
    file = Path(template)
    if not file.is_file() and template not in models.CHAT_TEMPLATES:
        known = ", ".join(models.CHAT_TEMPLATES)
        raise UsageError(f"--chat_template: no file {file} (known by name: {known})")
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else template
        return tokenizer.with_chat_template(source, name=template)
    except (OSError, ValueError) as error:
        raise UsageError(f"--chat_template={template}: {error}") from error


def count_parameters(params: Params) -> int:
    """Returns the number of parameters, also of a tree of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def weights_hash(params: Params) -> str:
    """Returns the sha256 of the name, shape, type and content of every array."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def feature_table(model: Frozen, items: Sequence[Item], *, max_length: int, file: Path) -> Table:
    """Computes features and the log-prob of every text, or reads them from a file.

    Args:
      model: the frozen model.
      items: N texts, each with its prompt.
      max_length: the largest number of tokens of prompt and text.
      file: the .npz that keeps them. It is made anew if it belongs to other items, another model or
        another length.

    Returns:
      features: `[N, L D]`, `layer_features`. log_prob: `[N]`, the mean log-prob of a token, nats.

    Raises:
      UsageError: if the file is damaged, or a text cannot be encoded.
    """
    return _cached_table(file, model, items, None, max_length)


def hidden_table(
    model: Frozen, items: Sequence[Item], *, max_length: int, layer: int, file: Path
) -> Table:
    """Computes the hidden states of every text below a cut, which is all that adapters above need.

    Args:
      model: the frozen model.
      items: N texts, each with its prompt.
      max_length: the largest number of tokens of prompt and text.
      layer: the cut, as in `shatter.models.split_layers`.
      file: as in `feature_table`.

    Returns:
      hidden: `[N, T, D]`, or `[N, T, D + H]` below the last mlp_out; T, the smallest of
      `shatter.data.length_buckets` that the longest text fits into. tokens: int `[N, T]`.
      mask: bool `[N, T]`, true on the text's tokens. valid: bool `[N, T]`, false on padding.
      log_prob: `[N]`, as in `feature_table`.

    Raises:
      UsageError: if the file is damaged, or a text cannot be encoded.
    """
    return _cached_table(file, model, items, layer, max_length)


@functools.cache
def _program(config: models.TransformerConfig, layer: int | None) -> Callable[..., Table]:
    """Compiles `(params, tokens, mask, valid) -> rows`: hidden states, or features if no layer."""

    def of_batch(params: Params, tokens: Array, mask: Array, valid: Array) -> Table:
        if layer is not None:
            return hidden_rows(config, layer, params, tokens, mask, valid)
        logits = models.lazy_logits(models.transformer(config), params, tokens, valid=valid)
        features = layer_features(config, params, tokens, mask, valid)
        return {"features": features, "log_prob": mean_log_prob(logits, tokens, mask)}

    return jax.jit(of_batch, compiler_options=compiler_options())


def hidden_rows(
    config: models.TransformerConfig,
    layer: int,
    params: Params,
    tokens: Array,
    mask: Array,
    valid: Array,
) -> Table:
    """Computes rows of `hidden_table` from documents `[B, T]`."""
    layers = models.split_layers(config, layer)
    hidden = layers.lower(params, tokens, valid=valid)
    upper_params = layers.upper_params(params)
    logits = models.lazy_logits(layers.upper, upper_params, hidden, valid=valid)
    rows = {"hidden": hidden, "tokens": tokens, "mask": mask, "valid": valid}
    return {**rows, "log_prob": mean_log_prob(logits, tokens, mask)}


def layer_features(
    config: models.TransformerConfig, params: Params, tokens: Array, mask: Array, valid: Array
) -> Array:
    """Computes the mean over a text's tokens of every block's output, after the final norm (ours).

    Args:
      config: the transformer's config.
      params: its parameters.
      tokens: int `[B, T]`.
      mask: bool `[B, T]`, true on the text's tokens.
      valid: bool `[B, T]`, false on padding.

    Returns:
      `[B, L D]`, the first block's D numbers first.
    """
    means = []
    for depth in range(1, config.num_layers + 1):
        lm = models.transformer(models.select_layers(config, 0, depth))
        blocks = jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["params"]["blocks"])
        part = {**params, "params": {**params["params"], "blocks": blocks}}
        assert lm.features is not None
        features = lm.features(part, tokens, valid=valid)
        means.append(masked_mean(features, mask[..., None], axis=-2))
    return jnp.concatenate(means, axis=-1)


def standardised(features: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Returns features `[N, F]`, scaled so that `like` `[P, F]` gets mean 0 and deviation 1."""
    deviation = like.std(axis=0)
    return (features - like.mean(axis=0)) / np.where(deviation > 1e-6, deviation, 1.0)


def mean_log_prob(logits: Array | FactoredLogits, tokens: Array, mask: Array) -> Array:
    """Computes the mean log-prob of a text's tokens, nats.

    Args:
      logits: `[..., T, V]`, or their factors.
      tokens: int `[..., T]`.
      mask: bool `[..., T]`, true on the text's tokens.

    Returns:
      `[...]`.
    """
    return documents.log_prob(logits, tokens, mask) / jnp.sum(mask, axis=-1)


def _cached_table(
    file: Path,
    model: Frozen,
    items: Sequence[Item],
    layer: int | None,
    max_length: int,
) -> Table:
    """Reads the table of these texts from the file, or computes and saves it if it is another."""
    digest = hashlib.sha256(f"{weights_hash(model.params)}{model.config}{max_length}".encode())
    digest.update(f"{layer}{model.tokenizer.fingerprint()}".encode())
    for prompt, text in items:
        digest.update(f"{text_key(prompt)}\0{text_key(text)}\1".encode())
    if file.exists():
        cached = run_folder.load_arrays(file)
        if cached.pop("digest", None) == digest.hexdigest():
            return cached
    rows = [data.Row(prompt, (text,), (0,)) for prompt, text in items]
    try:
        encoded, _ = data.encode_rows(rows, model.tokenizer, max_length=max_length)
    except ValueError as error:
        raise UsageError(f"a text cannot be encoded: {error}") from error
    run = _program(model.config, layer)
    table: Table = {}
    lengths = [row.length for row in encoded]
    buckets = data.length_buckets(max_length)
    if layer is not None:  # hidden states of all texts stand in one array
        buckets = [min(bucket for bucket in buckets if bucket >= max(lengths))]
    for length, numbers in data.plan_batches(
        lengths, batch_size=BATCH_SIZE, seed=0, epoch=0, buckets=buckets
    ):
        batch = data.collate(encoded, numbers, length=length, num_slots=1)
        arrays = (batch.tokens[:, 0], batch.mask[:, 0], batch.valid[:, 0])
        real = batch.row >= 0
        for part, padded in run(model.params, *arrays).items():
            values = np.asarray(padded)[real]
            if part not in table:
                table[part] = np.zeros((len(items), *values.shape[1:]), values.dtype)
            table[part][batch.row[real]] = values
    run_folder.save_arrays(file, {**table, "digest": np.array(digest.hexdigest())})
    return table
