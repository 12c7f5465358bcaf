"""What all seeds have in common: the pretrained model, the prompts, the judges, the words."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from experiments.common.sources import model_folder
from experiments.common.texts import prompt_rows
from experiments.common.words import Words, word_tokens
from experiments.search.config import WORDS, Settled
from shatter import documents, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from shatter.cli.finetune.reward_models import RewardModel, load_reward_model
from shatter.types import Array, Key, Params

JUDGE_FLAGS = ("reward_model", "held_out_reward_model")
_SENTENCE_END = "."


class World(NamedTuple):
    """The static part.

    Attributes:
      config: the config.
      sizes: of the pretrained model.
      lm: the pretrained model.
      tokenizer: its tokenizer.
      prompt_length: columns of the prompts.
      eos: the token that ends a response: with judges the end of a sentence; None = every response
        has `max_length` tokens.
      closing: the token that closes a document before a judge reads it; None only without judges.
      words: those that the scripted gold reward is about.
      judges: the sizes of the judge that is searched with and of the one in the place of the gold
        reward; empty where the gold reward is scripted.
    """

    config: Settled
    sizes: models.TransformerConfig
    lm: models.LanguageModel
    tokenizer: models.Tokenizer
    prompt_length: int
    eos: int | None
    closing: int | None
    words: Words
    judges: tuple[models.TransformerConfig, ...]


class Fixed(NamedTuple):
    """Arrays that are the same for every seed.

    Attributes:
      params: the parameters of the pretrained model.
      prompts: int `[Q, L]`, padded on the left.
      valid: bool `[Q, L]`, false on padding.
      judges: parameters and head of every judge.
    """

    params: Params
    prompts: Array
    valid: Array
    judges: tuple[tuple[Params, Array], ...]


def load_world(config: Settled) -> tuple[World, Fixed]:
    """Loads the models and encodes prompts and words.

    Returns:
      The world and its arrays.

    Raises:
      UsageError: if a model cannot be loaded, or prompts do not fit it.
    """
    folder = model_folder(config.model_name_or_path, config.data_dir)
    sizes, params, tokenizer = load_frozen(folder)
    prompts, valid = _prompts(config, sizes, tokenizer)
    judges = _load_judges(config, tokenizer, prompts.shape[1])
    world = World(
        config=config,
        sizes=sizes,
        lm=models.transformer(sizes),
        tokenizer=tokenizer,
        prompt_length=prompts.shape[1],
        eos=sentence_end(tokenizer) if judges else None,
        closing=tokenizer.eos,
        words=tuple(word_tokens(tokenizer, word) for word in WORDS),
        judges=tuple(judge.config for judge in judges),
    )
    arrays = tuple((judge.params, jnp.asarray(judge.head)) for judge in judges)
    return world, Fixed(params, prompts, valid, arrays)


def _prompts(
    config: Settled, sizes: models.TransformerConfig, tokenizer: models.Tokenizer
) -> tuple[Array, Array]:
    """Returns the tokens of the prompts, padded on the left, and where they are valid."""
    rows = prompt_rows(tokenizer, config.prompts)
    longest = max(map(len, rows))
    if longest + config.max_length >= sizes.max_length:
        raise UsageError(
            f"the longest of --prompts, a response and its end have {longest} + "
            f"{config.max_length} + 1 tokens, over the model's {sizes.max_length}: shorten one"
        )
    prompts, valid = documents.pad_prompts(rows, buckets=(longest,))
    return jnp.asarray(prompts, int), jnp.asarray(valid)


def _load_judges(
    config: Settled, tokenizer: models.Tokenizer, prompt_length: int
) -> tuple[RewardModel, ...]:
    """Loads the judges, none if none are given.

    Raises:
      UsageError: naming the flag, if a judge cannot be loaded or cannot read whole documents.
    """
    if not config.reward_model:
        return ()
    if tokenizer.eos is None:
        raise UsageError(
            f"--reward_model={config.reward_model}: expected a tokenizer with an EOS, which closes "
            f"what a judge reads, found none in {config.model_name_or_path}: choose another "
            "--model_name_or_path"
        )
    judges = []
    for flag in JUDGE_FLAGS:
        name = getattr(config, flag)
        judge = load_reward_model(
            name, tokenizer, flag=f"--{flag}", pretrained=config.model_name_or_path
        )
        room = judge.config.max_length
        if prompt_length + config.max_length + 1 > room:
            raise UsageError(
                f"--{flag}={name}: the longest of --prompts, a response and its end have "
                f"{prompt_length} + {config.max_length} + 1 tokens, over the judge's {room}: "
                "shorten --max_length or the prompts"
            )
        judges.append(judge)
    return tuple(judges)


def sentence_end(tokenizer: models.Tokenizer) -> int:
    """Returns the token that ends a sentence.

    Raises:
      UsageError: if there is none.
    """
    tokens = word_tokens(tokenizer, _SENTENCE_END)
    if len(tokens) != 1:
        raise UsageError(
            f"--reward_model: expected a model in which {_SENTENCE_END!r} is one token, found "
            f"{len(tokens)}: choose another --model_name_or_path"
        )
    return tokens[0]


def sample(
    world: World, params: Params, key: Key, prompts: Array, valid: Array, number: int
) -> documents.Samples:
    """Draws `number` responses to every prompt of `prompts[P, L]`: `[P, number]` on every leaf."""
    return documents.sample(
        world.lm,
        params,
        key,
        prompts,
        num_samples=number,
        max_length=world.config.max_length,
        eos=world.eos,
        valid=valid,
    )


def valid_tokens(world: World, valid: Array, tokens: Array) -> Array:
    """Returns which tokens `[..., T]` are not the padding of a prompt `valid[L]`, of which all are.

    What follows a response counts as valid; it is read, and nothing that is used depends on it.
    """
    room = jnp.ones(tokens.shape[-1] - world.prompt_length, bool)
    return jnp.broadcast_to(jnp.concatenate([valid, room]), tokens.shape)


def features(world: World, params: Params, valid: Array, tokens: Array) -> Array:
    """Computes the features of documents `[..., T]` that continue one prompt: `[..., T, F]`."""
    of_tokens: Any = world.lm.features
    found = of_tokens(params, tokens, valid=valid_tokens(world, valid, tokens))
    return with_embeddings(params, found, tokens)


def with_embeddings(params: Params, found: Array, tokens: Array) -> Array:
    """Returns the model's last hidden layer `[..., D]` with the embedding of each token beside it.

    The last layer says what comes next, and in a small model not what was said (ours).
    """
    return jnp.concatenate([found, embeddings(params)[tokens]], axis=-1)


def embeddings(params: Params) -> Array:
    """Returns the embeddings of the vocabulary, `[V, D]`."""
    table: Array = params["params"]["token_embedding"]["embedding"]
    return table
