"""What all seeds have in common: the frozen base, the prompts, its samples and its log-probs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.sources import model_folder
from experiments.online.config import LIKES, TASTES, Config, SettingName
from shatter import documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from shatter.types import Array, Key, Params

TARGETS = ("query", "value", "mlp_out")
SENTENCE_ENDS = (".", "!", "?")
Words = tuple[tuple[int, ...], ...]
"""Words, each the tokens of it."""


class World(NamedTuple):
    """The static part: config, models, prompts and words.

    Attributes:
      config: the config.
      is_closed: whether a response is one token.
      lm: the base as a model.
      parts: the base, cut below the blocks that have adapters.
      layer: the first block that has adapters.
      lora: targets and rank.
      tokenizer: of the base.
      prompts: int `[P, L]`, padded on the left.
      valid: bool `[P, L]`, false on their padding.
      ends: the tokens that end a response; empty where a response is one token.
      max_length: largest number of response tokens.
      likes: for each segment the words it likes.
      taste: how much it likes them, nats.
    """

    config: Config
    is_closed: bool
    lm: models.LanguageModel
    parts: models.Layers
    layer: int
    lora: models.LoraConfig
    tokenizer: models.Tokenizer
    prompts: Array
    valid: Array
    ends: tuple[int, ...]
    max_length: int
    likes: tuple[Words, Words]
    taste: float


class Fixed(NamedTuple):
    """Arrays that are the same for every seed.

    Attributes:
      params: the parameters of the base.
      log_z: `[P, G]`, `log E_p0 exp r_g`: exact where responses have one token; else an estimate
        from samples, taken as a constant of the population's law.
      prior_scale: `[]`, the scale of the members' prior.
    """

    params: Params
    log_z: Array
    prior_scale: Array


class Responses(NamedTuple):
    """Responses to prompts: the part of a `Query` that scores read."""

    prompt_id: Array  # int [...]
    tokens: Array  # int [..., N, T]
    mask: Array  # bool [..., N, T]


def load_world(config: Config) -> tuple[World, Params]:
    """Loads the base and encodes prompts and words.

    Returns:
      The world and the base's parameters.

    Raises:
      UsageError: if the model cannot be loaded, or prompts or words do not fit it.
    """
    sizes, params, tokenizer = load_frozen(model_folder(config.model_name_or_path, config.data_dir))
    if not 1 <= config.adapted_blocks < sizes.num_layers:
        raise UsageError(
            f"--adapted_blocks must be from 1 to {sizes.num_layers - 1}, below the number of the "
            f"model's blocks, found {config.adapted_blocks}"
        )
    is_closed = config.setting == "closed"
    max_length = 1 if is_closed else config.max_length
    begin = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    rows = [begin + tokenizer.encode(prompt) for prompt in config.prompts]
    if not rows or not all(config.prompts):
        raise UsageError(f"--prompts must be texts that are not empty, found {config.prompts}")
    longest = max(len(row) for row in rows)
    if longest + max_length > sizes.max_length:
        raise UsageError(
            f"the longest of --prompts and a response have {longest} + {max_length} tokens, over "
            f"the model's {sizes.max_length}: shorten one"
        )
    prompts, valid = documents.pad_prompts(rows, buckets=(longest,))
    layer = sizes.num_layers - config.adapted_blocks
    world = World(
        config,
        is_closed,
        models.transformer(sizes),
        models.split_layers(sizes, layer),
        layer,
        models.LoraConfig(rank=config.rank, alpha=float(config.rank), targets=TARGETS),
        tokenizer,
        jnp.asarray(prompts, int),
        jnp.asarray(valid),
        () if is_closed else _sentence_ends(tokenizer, sizes.vocab_size),
        max_length,
        _likes(tokenizer, config.setting),
        TASTES[config.setting] if config.taste is None else config.taste,
    )
    return world, params


def base_log_probs(world: World, params: Params, responses: Any) -> Array:
    """Returns log p0 of every response, `[..., N]`, nats."""
    valid = valid_tokens(world, responses)
    return documents.document_log_probs(
        world.lm, params, responses.tokens, responses.mask, valid=valid
    )


def base_samples(world: World, params: Params, key: Key, num_samples: int) -> Responses:
    """Draws samples of the base for every prompt, `[P, num_samples]`."""
    drawn = sample(world, params, key, world.prompts, world.valid, num_samples)
    return Responses(jnp.arange(len(world.prompts)), *drawn)


def all_responses(world: World, params: Params) -> Responses:
    """Returns every response of one token to every prompt, `[P, V]`."""
    vocab_size = jax.eval_shape(world.lm.apply, params, world.prompts).shape[-1]
    shape = (len(world.prompts), vocab_size)
    prompts = jnp.repeat(world.prompts[:, None], vocab_size, axis=1)
    last = jnp.broadcast_to(jnp.arange(vocab_size), shape)[..., None]
    tokens = jnp.concatenate([prompts, last], axis=-1)
    mask = jnp.broadcast_to(jnp.arange(tokens.shape[-1]) == prompts.shape[-1], tokens.shape)
    return Responses(jnp.arange(len(world.prompts)), tokens, mask)


def sample(
    world: World,
    params: Params,
    key: Key,
    prompt: Array,
    valid: Array,
    num_samples: int,
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """Draws responses to one prompt or to several: their tokens and mask."""
    drawn = documents.sample(
        world.lm,
        params,
        key,
        prompt,
        num_samples=num_samples,
        max_length=world.max_length,
        eos=world.ends or None,
        valid=valid,
        temperature=temperature,
    )
    return drawn.tokens, drawn.mask


def valid_tokens(world: World, responses: Any) -> Array:
    """Returns a mask in the shape of the tokens, false on the padding of prompts."""
    of_prompt = world.valid[responses.prompt_id]
    of_response = jnp.ones((*of_prompt.shape[:-1], world.max_length), bool)
    valid = jnp.concatenate([of_prompt, of_response], axis=-1)
    return jnp.broadcast_to(valid[..., None, :], responses.tokens.shape)


def _sentence_ends(tokenizer: models.Tokenizer, vocab_size: int) -> tuple[int, ...]:
    ends = [token for token in range(vocab_size) if tokenizer.decode([token]) in SENTENCE_ENDS]
    return tuple(dict.fromkeys([*([] if tokenizer.eos is None else [tokenizer.eos]), *ends]))


def _likes(tokenizer: models.Tokenizer, setting: SettingName) -> tuple[Words, Words]:
    first, second = (tuple(_word(tokenizer, w) for w in words) for words in LIKES[setting])
    for word, text in zip(first + second, sum(LIKES[setting], ()), strict=True):
        if setting == "closed" and len(word) != 1:
            raise UsageError(
                f"the closed setting is about words of one token, but {text!r} has {len(word)} in "
                "this model's vocabulary: run it with stories260k, or with --setting=open"
            )
    return first, second


def _word(tokenizer: models.Tokenizer, word: str) -> tuple[int, ...]:
    """Returns the tokens of a word in the middle of a sentence."""
    return tuple(tokenizer.encode(f"a {word}")[len(tokenizer.encode("a")) :])
