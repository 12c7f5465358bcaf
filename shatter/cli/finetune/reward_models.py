"""Opens the rewards of a run: reward models that `shatter finetune` wrote, and functions."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shatter import data, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.compiling import compiler_options
from shatter.cli.common.frozen import weights_hash
from shatter.cli.common.merged import load_merged
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.pretrained import Pretrained
from shatter.cli.finetune.rewards import Completion, Reward, check_finite, open_function
from shatter.types import Array, Params

HEAD = "reward_head.safetensors"
"""The file of a reward model's head, beside its weights."""


def open_rewards(config: Config, model: Pretrained) -> tuple[Reward, ...]:
    """Opens the reward model and imports the reward functions, in this order.

    Args:
      config: the config.
      model: the pretrained model, whose tokenizer a reward model must share.

    Returns:
      The rewards.

    Raises:
      UsageError: naming the flag, and what cannot be opened or imported.
    """
    opened = [_open_model(config, model)] if config.reward_model else []
    opened += [open_function(name) for name in config.reward_function]
    weights = config.reward_weights or (1.0,) * len(opened)
    return tuple(r._replace(weight=w) for r, w in zip(opened, weights, strict=True))


class RewardModel(NamedTuple):
    """A reward model that `--objective=reward_model` wrote.

    Attributes:
      config: of its transformer.
      params: the transformer's parameters, in float32.
      head: `[D]`, which gives the reward from the features of a document's last token, its EOS.
    """

    config: models.TransformerConfig
    params: Params
    head: np.ndarray


def load_reward_model(
    name: str, tokenizer: models.Tokenizer, *, flag: str = "--reward_model", pretrained: str
) -> RewardModel:
    """Opens a folder that `--objective=reward_model` wrote.

    Args:
      name: the folder.
      tokenizer: that of the pretrained model, which the reward model must share.
      flag: the flag that names the folder, for messages.
      pretrained: the pretrained model, for messages.

    Returns:
      The reward model.

    Raises:
      UsageError: naming the flag, if the folder cannot be opened or has another tokenizer.
    """
    folder = Path(name).expanduser()
    if not (folder / HEAD).is_file():
        raise UsageError(
            f"{flag}={name}: expected a model folder with {HEAD}, found "
            "none: pass the folder model/ of a run of shatter finetune --objective=reward_model"
        )
    try:
        found = load_merged(name, dtype="float32")
    except UsageError as error:
        raise UsageError(str(error).replace("--model_name_or_path", flag)) from error
    if (
        found.tokenizer is None
        or found.tokenizer.files["tokenizer.json"] != tokenizer.files["tokenizer.json"]
    ):
        raise UsageError(
            f"{flag}={name}: expected the tokenizer of "
            f"{pretrained}, found another: train the reward model on the same "
            "pretrained model, or call it in a --reward_function"
        )
    head = _read_head(folder / HEAD, found.config.width, flag)
    return RewardModel(found.config, found.params, head)


def document_rewards(
    config: models.TransformerConfig, params: Params, head: Array, tokens: Array, valid: Array
) -> Array:
    """Computes the rewards of whole documents, each of which ends with its EOS.

    Args:
      config: of the reward model's transformer.
      params: the transformer's parameters.
      head: `[D]`.
      tokens: int `[..., T]`.
      valid: bool `[..., T]`, false on padding, left or right.

    Returns:
      `[...]`.
    """
    lm = models.transformer(config)
    assert lm.features is not None
    features = lm.features(params, tokens, valid=valid)
    last = tokens.shape[-1] - 1 - jnp.argmax(valid[..., ::-1], axis=-1)
    ends = jnp.take_along_axis(features, last[..., None, None], axis=-2)[..., 0, :]
    return (ends @ head.astype(ends.dtype)).astype(head.dtype)


def _open_model(config: Config, model: Pretrained) -> Reward:
    """Returns the reward model of a run of `shatter finetune` as a source of rewards."""
    found = load_reward_model(
        config.reward_model, model.tokenizer, pretrained=config.model_name_or_path
    )
    if found.config.max_length < config.max_length:
        raise UsageError(
            f"--max_length must be at most {found.config.max_length}, because the reward model "
            f"has that many positions, found {config.max_length}"
        )
    digest = weights_hash({"head": found.head, "params": found.params})
    size = config.per_device_eval_batch_size
    eos = model.tokenizer.eos

    def score(completions: Sequence[Completion]) -> np.ndarray:
        run = _program(found.config)
        limit = min(config.max_length + 1, found.config.max_length)
        buckets, values = data.length_buckets(limit), []
        documents = [_closed(c.tokens, c.finished, eos, limit) for c in completions]
        for first in range(0, len(documents), size):
            part = documents[first : first + size]
            part += part[-1:] * (size - len(part))
            length = min(b for b in buckets if b >= max(map(len, part)))
            tokens = np.zeros((size, length), np.int32)
            for row, ids in zip(tokens, part, strict=True):
                row[: len(ids)] = ids
            lengths = np.asarray([len(ids) for ids in part])
            values.append(np.asarray(run(found.params, found.head, tokens, lengths)))
        rewards = np.concatenate(values)[: len(documents)].astype(np.float64)
        for value, completion in zip(rewards, completions, strict=True):
            check_finite(f"--reward_model={config.reward_model}", value, completion)
        return rewards

    return Reward("reward_model", digest, 1.0, score)


def _closed(tokens: list[int], finished: bool, eos: int | None, limit: int) -> list[int]:
    """Returns a document as the reward model was trained on documents: with EOS at its end."""
    if finished or eos is None:
        return tokens
    return [*tokens[: limit - 1], eos]


def _read_head(file: Path, width: int, flag: str) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        head = load(file.read_bytes())["score.weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise UsageError(f"{flag}: {file} cannot be read: {error!r}") from error
    if head.shape != (1, width):
        raise UsageError(
            f"{flag}: {file}: expected score.weight of the shape (1, {width}), found "
            f"{head.shape}: pass the folder as it was written"
        )
    return head[0].astype(np.float32)


@functools.cache
def _program(config: models.TransformerConfig) -> Callable[..., Array]:
    """Compiles `(params, head[D], tokens[B, T], lengths[B]) -> rewards[B]`."""

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def run(params: Params, head: Array, tokens: Array, lengths: Array) -> Array:
        valid = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return document_rewards(config, params, head, tokens, valid)

    return run
