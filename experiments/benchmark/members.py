"""A training step of M adapters on one frozen base, compared with M whole models."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmark import finetune
from experiments.benchmark.config import Gpt2, gpt2
from experiments.benchmark.ways import Program, Way, compile_program
from shatter import documents, ensembles, losses, models
from shatter.types import Array, Key, Params

LEARNING_RATE = 1e-3
UTILITIES = ("scores", "log-probs", "log-probs, mlp_out alone")


def sizes(name: str) -> Gpt2:
    """Returns the sizes of a GPT-2 by its name, in float32.

    The documents of the largest one are short, because the section is meant for CPUs.
    """
    named = dataclasses.replace(gpt2(name), half=False)
    if name == "gpt2":
        return dataclasses.replace(named, num_pairs=4, length=64, prompt_length=16)
    return named


def num_ways(name: str) -> int:
    """Returns the number of ways; whole models of the largest size are left out."""
    return 3 if name == "gpt2" else 4


def member_ways(sizes: Gpt2, utility: str, num_members: int, seed: int) -> list[Way]:
    """Returns the steps of one adapter, of M adapters, and of M whole models one after the other.

    Args:
      sizes: sizes of the model and of the batch.
      utility: "log-probs": the log-prob of a response, over the whole vocabulary. "log-probs,
        mlp_out alone": the same with adapters on the last block's mlp_out only, where the model is
        then split. "scores": a frozen readout of the last token's features, as in a reward model.
      num_members: M.
      seed: seed of weights and pairs.

    Returns:
      The ways, in units of steps.
    """
    base = make_base(sizes, seed)
    ways = [
        shared_way(sizes, utility, base, "one adapter", 1, 1),
        *(
            shared_way(sizes, utility, base, f"{num_members} adapters on one base, {how}", *counts)
            for how, counts in (
                ("in turn", (num_members, 1)),
                ("vmapped", (num_members, num_members)),
            )
        ),
    ]
    if sizes.width < 768:
        own = jax.jit(partial(_draw, sizes, utility, 1))(base.params, base.key)
        first = jax.tree.map(lambda leaf: leaf[0], own)
        step = partial(_whole_step, sizes, utility)
        program = compile_program(step, base.params, first, _moments(first), base.batch)
        name = f"{num_members} whole models, one by one"
        ways.append(_way(name, program, base, first, num_members))
    return ways


class Base(NamedTuple):
    """What all ways share: the frozen model, the batch, and the key of the adapters."""

    params: Params
    batch: finetune.Batch
    key: Key


def make_base(sizes: Gpt2, seed: int) -> Base:
    """Draws the weights of the base and the batch."""
    params = finetune.init(sizes, seed)
    return Base(params, finetune.make_batch(sizes, params, seed), jax.random.key(seed))


def shared_way(
    sizes: Gpt2, utility: str, base: Base, name: str, num_members: int, at_once: int
) -> Way:
    """Returns the step of M adapters on one base, of which `at_once` are vmapped at a time."""
    own = jax.jit(partial(_draw, sizes, utility, num_members))(base.params, base.key)
    step = partial(_shared_step, sizes, utility, at_once)
    program = compile_program(step, base.params, own, _moments(own), base.batch)
    return _way(name, program, base, own, 1)


def _way(name: str, program: Program, base: Base, own: Params, times: int) -> Way:
    """Returns the way that takes `times` steps in a call, which together are one unit."""
    moments = _moments(own)

    def run() -> None:
        for _ in range(times):
            result = program.call(base.params, own, moments, base.batch)
        jax.block_until_ready(result)

    return Way(name, run, 1, program.compile_seconds, program.peak_bytes)


def _moments(own: Params) -> optax.OptState:
    return jax.jit(optax.adam(LEARNING_RATE).init)(own)


def _layers(sizes: Gpt2, utility: str) -> tuple[models.Layers, models.LoraConfig]:
    """Returns the model, split below its last block or that block's mlp_out, and the adapters."""
    config = finetune.transformer_config(sizes)
    alone = utility.endswith("mlp_out alone")
    targets = ("mlp_out",) if alone else ("qkv", "mlp_out")
    layer = config.num_layers if alone else config.num_layers - 1
    return models.split_layers(config, layer), models.LoraConfig(8, 8.0, targets)


def _draw(sizes: Gpt2, utility: str, num_members: int, params: Params, key: Key) -> Params:
    """Draws the adapters of M members."""
    layers, lora = _layers(sizes, utility)
    above = layers.upper_params(params)
    ensemble = ensembles.adapters(
        layers.upper, above, lora, num_members=num_members, prior_scale=0.01
    )
    return ensemble.init(key)[1]


def _shared_step(
    sizes: Gpt2,
    utility: str,
    at_once: int,
    params: Params,
    own: Params,
    moments: optax.OptState,
    batch: finetune.Batch,
) -> tuple[Params, optax.OptState, Array]:
    """Takes a step of all members; the layers below the adapters are computed once."""
    layers, lora = _layers(sizes, utility)
    above, hidden = layers.upper_params(params), layers.lower(params, batch.tokens)

    def loss(own: Params) -> Array:
        member = models.with_lora(above, own, lora)
        return _loss(utility, layers.upper, member, hidden, batch, at_once)

    values, gradient = jax.lax.map(jax.value_and_grad(loss), own, batch_size=at_once)
    return _update(values, gradient, own, moments)


def _whole_step(
    sizes: Gpt2,
    utility: str,
    params: Params,
    own: Params,
    moments: optax.OptState,
    batch: finetune.Batch,
) -> tuple[Params, optax.OptState, Array]:
    """Takes a step of one member as a model of its own."""
    config = finetune.transformer_config(sizes)

    def loss(own: Params) -> Array:
        whole = ensembles.whole_adapters(own, config.num_layers - 1)
        member = models.with_lora(params, whole, _layers(sizes, utility)[1])
        return _loss(utility, models.transformer(config), member, batch.tokens, batch)

    return _update(*jax.value_and_grad(loss)(own), own, moments)


def _loss(
    utility: str,
    lm: models.LanguageModel,
    member: Params,
    inputs: Array,
    batch: finetune.Batch,
    at_once: int = 1,
) -> Array:
    if utility.startswith("log-probs"):
        logits = models.lazy_logits(lm, member, inputs, copies=at_once)
        values = documents.log_prob(logits, batch.tokens, batch.mask)
    else:
        assert lm.features is not None
        last = lm.features(member, inputs)[:, -1]
        values = last @ jnp.cos(jnp.arange(last.shape[-1], dtype=last.dtype))
    pairs = jnp.stack(jnp.split(values, 2), axis=-1)
    return jnp.mean(losses.ilhf_loss(pairs, jnp.zeros(pairs.shape[0], int)))


def _update(
    loss: Array, gradient: Params, own: Params, moments: optax.OptState
) -> tuple[Params, optax.OptState, Array]:
    updates, moments = optax.adam(LEARNING_RATE).update(gradient, moments)
    return optax.apply_updates(own, updates), moments, loss
