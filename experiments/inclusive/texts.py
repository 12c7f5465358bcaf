"""Encodes questions and options as tokens, and pretrains a tiny language model on them."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from shatter import documents, models, training
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics, Params

BOS, EOS, SEPARATOR, UNKNOWN = "<bos>", "<eos>", "<sep>", "<unk>"
BPE_TOKENS = 1024  # enough for most words of a survey to be one token
NUM_HEADS = 2
LONG_OPTION = 8  # tokens; prompts with longer ones are scored apart, so that they alone are padded


class Bucket(NamedTuple):
    """B prompts of a pool whose options have similar lengths, with K options each.

    Attributes:
      rows: int `[B]`, which prompts of the pool.
      prompts: int `[B, Tp]`, BOS, tag and question, separator; padded on the left.
      prompt_valid: bool `[B, Tp]`, false on padding.
      options: int `[B, K, To]`, the option's tokens and EOS; padded on the right.
      option_mask: bool `[B, K, To]`, true on the option's tokens, EOS included.
    """

    rows: Array
    prompts: Array
    prompt_valid: Array
    options: Array
    option_mask: Array


class Pool(NamedTuple):
    """P prompts with at most K options each, as tokens.

    Attributes:
      buckets: the prompts by the length of their options.
      valid: bool `[P, K]`, false where a prompt has fewer options.
    """

    buckets: tuple[Bucket, ...]
    valid: Array


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Trains a small byte-pair encoding on texts.

    Args:
      texts: questions, options, tags.

    Returns:
      A tokenizer with BOS, EOS and a separator, whose vocabulary has every character of the texts.
    """
    tokenizer = Tokenizer(BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [BOS, EOS, SEPARATOR, UNKNOWN]
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_TOKENS, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_pool(
    tokenizer: Tokenizer, prompts: Sequence[str], options: Sequence[Sequence[str]]
) -> Pool:
    """Encodes prompts and their options.

    Args:
      tokenizer: as from `train_tokenizer`.
      prompts: P texts.
      options: the options of each.

    Returns:
      The pool.
    """
    vocabulary = tokenizer.get_vocab()
    bos, eos, separator = (vocabulary[name] for name in (BOS, EOS, SEPARATOR))
    heads = [[bos, *tokenizer.encode(text).ids, separator] for text in prompts]
    tails = [[[*tokenizer.encode(option).ids, eos] for option in row] for row in options]
    valid = np.zeros((len(tails), max(map(len, tails))), bool)
    is_long = np.zeros(len(tails), bool)
    for p, row in enumerate(tails):
        valid[p, : len(row)] = True
        is_long[p] = max(map(len, row)) > LONG_OPTION
    buckets = tuple(
        _bucket(rows, heads, tails, valid.shape[1])
        for rows in (np.flatnonzero(~is_long), np.flatnonzero(is_long))
        if rows.size
    )
    return Pool(buckets, jnp.asarray(valid))


def make_pool(
    prompts: Sequence[str], options: Sequence[Sequence[str]], *, width: int
) -> tuple[Pool, models.LanguageModel]:
    """Encodes prompts and options, and makes a transformer of 2 layers with room for them.

    Args:
      prompts: P texts.
      options: the options of each.
      width: of the transformer, a multiple of `NUM_HEADS`.

    Returns:
      The pool and the model.
    """
    tokenizer = train_tokenizer([*prompts, *(option for row in options for option in row)])
    pool = encode_pool(tokenizer, prompts, options)
    sizes = models.TransformerConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_length=longest_document(pool),
        width=width,
        num_layers=2,
        num_heads=NUM_HEADS,
    )
    return pool, models.transformer(sizes)


def _bucket(
    rows: np.ndarray, heads: list[list[int]], tails: list[list[list[int]]], num_options: int
) -> Bucket:
    prompt_length = max(len(heads[p]) for p in rows)
    option_length = max(len(option) for p in rows for option in tails[p])
    prompts = np.zeros((len(rows), prompt_length), int)
    prompt_valid = np.zeros(prompts.shape, bool)
    options = np.zeros((len(rows), num_options, option_length), int)
    option_mask = np.zeros(options.shape, bool)
    for b, p in enumerate(rows):
        prompts[b, prompt_length - len(heads[p]) :] = heads[p]
        prompt_valid[b, prompt_length - len(heads[p]) :] = True
        for k, option in enumerate(tails[p]):
            options[b, k, : len(option)] = option
            option_mask[b, k, : len(option)] = True
    return Bucket(*map(jnp.asarray, (rows, prompts, prompt_valid, options, option_mask)))


def option_log_probs(lm: models.LanguageModel, params: Params, pool: Pool) -> Array:
    """Returns the log-prob of every option given its prompt, which is read once for all of them.

    Args:
      lm: the transformer.
      params: its parameters.
      pool: P prompts with at most K options.

    Returns:
      `[P, K]`, nats, summed over an option's tokens, EOS included; -inf where there is no option.
    """
    table = jnp.full(pool.valid.shape, -jnp.inf)
    for bucket in pool.buckets:
        table = table.at[bucket.rows].set(_bucket_log_probs(lm, params, bucket))
    return jnp.where(pool.valid, table, -jnp.inf)


def _bucket_log_probs(lm: models.LanguageModel, params: Params, bucket: Bucket) -> Array:
    assert lm.init_cache is not None and lm.decode is not None and lm.take_cache is not None
    size, num_options, length = bucket.options.shape
    cache = lm.init_cache(size, bucket.prompts.shape[1] - 1 + length)
    _, cache = lm.decode(params, cache, bucket.prompts[:, :-1], valid=bucket.prompt_valid[:, :-1])
    cache = lm.take_cache(cache, jnp.repeat(jnp.arange(size), num_options))
    separator = jnp.repeat(bucket.prompts[:, -1:], num_options, axis=0)
    tokens = jnp.concatenate([separator, bucket.options.reshape(-1, length)], axis=1)
    mask = jnp.pad(bucket.option_mask.reshape(-1, length), ((0, 0), (1, 0)))
    logits, _ = lm.decode(params, cache, tokens[:, :-1])
    logits = jnp.pad(logits, ((0, 0), (0, 1), (0, 0)))  # the last token predicts nothing
    return documents.log_prob(logits, tokens, mask).reshape(size, num_options)


def pretrain(lm: models.LanguageModel, key: Key, pool: Pool, *, num_steps: int) -> Params:
    """Trains by next tokens on every question with each of its options, all equally often.

    The pretrained model so knows the language and the options, and nothing of people's answers.

    Args:
      lm: the language model.
      key: a typed key.
      pool: the texts.
      num_steps: full-batch Adam steps.

    Returns:
      The pretrained parameters.
    """

    def objective(params: Params, pool: Pool, key: Key, batch: None) -> tuple[Array, Metrics]:
        del key, batch
        log_probs = jnp.where(pool.valid, option_log_probs(lm, params, pool), 0.0)
        loss = -jnp.sum(log_probs) / jnp.sum(pool.valid)
        for bucket in pool.buckets:
            logits = lm.apply(params, bucket.prompts, valid=bucket.prompt_valid)
            after_bos = jnp.cumsum(bucket.prompt_valid, axis=1) > 1
            loss -= documents.log_prob(logits, bucket.prompts, after_bos).mean()
        return loss, {}

    fit = training.learner(objective, optax.adam(optax.cosine_decay_schedule(1e-2, num_steps)))

    @partial(jax.jit, compiler_options=compiler_options())
    def run(state: training.TrainState, pool: Pool) -> training.TrainState:
        return jax.lax.scan(lambda s, _: fit.step(s, pool, None), state, length=num_steps)[0]

    return run(fit.init(lm.init(key), key), pool).params


def longest_document(pool: Pool) -> int:
    """Returns the largest number of tokens of a prompt followed by an option."""
    return max(b.prompts.shape[1] + b.options.shape[2] for b in pool.buckets)
