"""What all seeds have in common: the frozen base, the prompts, its samples and its log-probs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.sources import model_folder
from experiments.common.texts import prompt_rows
from experiments.common.words import Words, word_tokens
from experiments.online.config import LIKES, SettingName, Settled
from shatter import documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from shatter.cli.common.learners import LAST_MLP_OUT
from shatter.factored import FactoredLogits, target_log_probs
from shatter.numerics import masked_mean, masked_sum
from shatter.types import Array, Key, Params

TARGETS = ("query", "value", "mlp_out")
SENTENCE_ENDS = (".", "!", "?")


class World(NamedTuple):
    """The static part: config, models, prompts and words.

    Attributes:
      config: the config.
      is_closed: whether a response is one token.
      lm: the base as a model.
      parts: the base, cut below the projections that have adapters.
      first_block: the first block that has adapters.
      lora: targets and rank.
      tokenizer: of the base.
      prompts: int `[P, L]`, padded on the left.
      valid: bool `[P, L]`, false on their padding.
      ends: the tokens that end a response; empty where a response is one token.
      likes: for each segment the words it likes.
    """

    config: Settled
    is_closed: bool
    lm: models.LanguageModel
    parts: models.Layers
    first_block: int
    lora: models.LoraConfig
    tokenizer: models.Tokenizer
    prompts: Array
    valid: Array
    ends: tuple[int, ...]
    likes: tuple[Words, Words]


class Fixed(NamedTuple):
    """Arrays that are the same for every seed.

    Attributes:
      params: the parameters of the base.
      log_z: `[P, G]`, `log E_p0 exp r_g`: exact where responses have one token; else an estimate
        from samples, taken as a constant of the population's law.
      prior_scale: `[]`, the scale of the members' prior.
      centre: `[F]`, the mean of the base's features over its own samples.
      width: `[F]`, their standard deviation.
    """

    params: Params
    log_z: Array
    prior_scale: Array
    centre: Array
    width: Array


class Responses(NamedTuple):
    """Responses to prompts."""

    prompt_id: Array  # int [...]
    tokens: Array  # int [..., N, T]
    mask: Array  # bool [..., N, T]


class Read(NamedTuple):
    """Responses as the frozen base reads them; it is asked and kept in the place of a `Query`.

    Attributes:
      prompt_id: int `[...]`.
      tokens: int `[..., N, T]`.
      mask: bool `[..., N, T]`, true on the response's tokens.
      valid: bool `[..., N]`, false on an empty slot.
      log_p0: `[..., N]`, nats.
      features: `[..., N, F]`, of mean 0 and deviation 1 over samples of the base: those after the
        final norm, their mean over the response's tokens and the last one's.
      hidden: `[..., N, T', H]`, what enters the adapted part, of all tokens or of those from the
        last of the prompt on; one entry where only other learners than adapters will read it.
    """

    prompt_id: Array
    tokens: Array
    mask: Array
    valid: Array
    log_p0: Array
    features: Array
    hidden: Array


def load_world(config: Settled) -> tuple[World, Params]:
    """Loads the base and encodes prompts and words.

    Returns:
      The world and the base's parameters.

    Raises:
      UsageError: if the model cannot be loaded, or prompts or words do not fit it.
    """
    sizes, params, tokenizer = load_frozen(model_folder(config.model_name_or_path, config.data_dir))
    is_last = config.adapted_layers == LAST_MLP_OUT
    if not is_last and not 1 <= int(config.adapted_layers) < sizes.num_layers:
        raise UsageError(
            f"--adapted_layers must be {LAST_MLP_OUT} or from 1 to {sizes.num_layers - 1}, below "
            f"the number of the model's blocks, found {config.adapted_layers}"
        )
    is_closed = config.setting == "closed"
    rows = prompt_rows(tokenizer, config.prompts, as_chat=config.setting == "chat")
    longest = max(len(row) for row in rows)
    if longest + config.max_length > sizes.max_length:
        raise UsageError(
            f"the longest of --prompts and a response have {longest} + {config.max_length} tokens, "
            f"over the model's {sizes.max_length}: shorten one"
        )
    prompts, valid = documents.pad_prompts(rows, buckets=(longest,))
    cut = sizes.num_layers - (0 if is_last else int(config.adapted_layers))
    targets = ("mlp_out",) if is_last else TARGETS
    world = World(
        config,
        is_closed,
        models.transformer(sizes),
        models.split_layers(sizes, cut),
        min(cut, sizes.num_layers - 1),
        models.LoraConfig(rank=config.rank, alpha=float(config.rank), targets=targets),
        tokenizer,
        jnp.asarray(prompts, int),
        jnp.asarray(valid),
        () if is_closed else _ends(tokenizer, sizes.vocab_size, config.setting),
        _likes(tokenizer, config.setting),
    )
    return world, params


def read(world: World, fixed: Fixed, responses: Any, *, valid: Array | None = None) -> Read:
    """Runs the frozen base over responses, once for all learners.

    Args:
      world: the world.
      fixed: its arrays.
      responses: `Responses` or a `Query`, with any leading axes.
      valid: bool `[..., N]`, false on empty slots; None = all true.

    Returns:
      The responses with what the base computes of them.
    """
    tokens, mask = responses.tokens, responses.mask
    number = world.config.max_length
    of_tokens = valid_tokens(world, responses)
    hidden = world.parts.lower(fixed.params, tokens, valid=of_tokens)
    if world.config.adapted_layers == LAST_MLP_OUT:  # above, tokens no longer see each other
        hidden = hidden[..., -number - 1 :, :]
    upper = world.parts.upper_params(fixed.params)
    logits = above(world, upper, hidden, of_tokens)
    of_upper: Any = world.parts.upper.features
    features = of_upper(upper, hidden, valid=of_tokens)[..., -number:, :]
    said = mask[..., -number:]
    last = number - 1 - jnp.argmax(said[..., ::-1], axis=-1)
    ends = jnp.take_along_axis(features, last[..., None, None], axis=-2)[..., 0, :]
    rows = jnp.concatenate([masked_mean(features, said[..., None], axis=-2), ends], axis=-1)
    centre, width = (jnp.broadcast_to(leaf, rows.shape) for leaf in (fixed.centre, fixed.width))
    return Read(
        responses.prompt_id,
        tokens,
        mask,
        jnp.ones(tokens.shape[:-1], bool) if valid is None else valid,
        response_log_probs(world, logits, tokens, mask),
        (rows - centre) / width,
        hidden,
    )


def above(world: World, upper: Params, hidden: Array, valid: Array) -> FactoredLogits:
    """Returns the logits of the adapted part, with or without adapters, as factors."""
    factored: Any = world.parts.upper.factored
    logits: FactoredLogits = factored(upper, hidden, valid=valid)
    return logits


def response_logits(world: World, logits: FactoredLogits) -> FactoredLogits:
    """Returns the factors of the logits before every token of a response and after the last."""
    return logits.map_rows(lambda leaf: leaf[..., -world.config.max_length - 1 :, :])


def response_log_probs(world: World, logits: FactoredLogits, tokens: Array, mask: Array) -> Array:
    """Returns log-probs `[...]` of responses in `tokens[..., T]`, nats, from the factors."""
    number = world.config.max_length
    before = response_logits(world, logits).map_rows(lambda leaf: leaf[..., :-1, :])
    log_probs = target_log_probs(before, tokens[..., -number:])
    return masked_sum(log_probs, mask[..., -number:])


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
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> tuple[Array, Array]:
    """Draws responses to one prompt or to several: their tokens and mask."""
    drawn = documents.sample(
        world.lm,
        params,
        key,
        prompt,
        num_samples=num_samples,
        max_length=world.config.max_length,
        eos=world.ends or None,
        valid=valid,
        temperature=temperature,
        top_k=top_k,
    )
    return drawn.tokens, drawn.mask


def valid_tokens(world: World, responses: Any) -> Array:
    """Returns a mask in the shape of the tokens, false on the padding of prompts."""
    of_prompt = world.valid[responses.prompt_id]
    of_response = jnp.ones((*of_prompt.shape[:-1], world.config.max_length), bool)
    valid = jnp.concatenate([of_prompt, of_response], axis=-1)
    return jnp.broadcast_to(valid[..., None, :], responses.tokens.shape)


def _ends(tokenizer: models.Tokenizer, vocab_size: int, setting: SettingName) -> tuple[int, ...]:
    """Returns the tokens that end a response: EOS, in the open setting also a sentence's end."""
    ends = [] if tokenizer.eos is None else [tokenizer.eos]
    if setting == "open":
        ends += [t for t in range(vocab_size) if tokenizer.decode([t]) in SENTENCE_ENDS]
    return tuple(dict.fromkeys(ends))


def _likes(tokenizer: models.Tokenizer, setting: SettingName) -> tuple[Words, Words]:
    first, second = (tuple(word_tokens(tokenizer, w) for w in words) for words in LIKES[setting])
    for word, text in zip(first + second, sum(LIKES[setting], ()), strict=True):
        if setting == "closed" and len(word) != 1:
            raise UsageError(
                f"the closed setting is about words of one token, but {text!r} has {len(word)} in "
                "this model's vocabulary: run it with stories260k, or with --setting=open"
            )
    return first, second
