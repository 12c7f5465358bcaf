"""Steps that train adapters on a frozen pretrained model: one adapter's, and those of a group."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import finetune
from experiments.benchmark.config import Gpt2
from experiments.benchmark.finetune import Batch, Trainer
from experiments.benchmark.ways import Program, compile_program
from shatter import documents, ensembles, losses, models
from shatter.types import Array, Key, Metrics, Params

RANK = 8
LEARNING_RATE = 1e-3  # so that three steps change the loss by more than the tolerance


class Adapted(NamedTuple):
    """Which blocks of a model have adapters, and those adapters.

    Attributes:
      lora: the configuration of the adapters.
      layer: the first block that has adapters.
      adapters: of the blocks from there on; with a first axis M where there are M members.
    """

    lora: models.LoraConfig
    layer: int
    adapters: Params


def targets(config: models.TransformerConfig) -> tuple[str, ...]:
    """Returns the names of all projections of a block."""
    attention = ("qkv",) if config.rope is None else ("query", "key", "value")
    inner = ("gate", "up") if config.gated else ("mlp_in",)
    return (*attention, "attention_out", *inner, "mlp_out")


def draw(sizes: Gpt2, params: Params, seed: int, *, layer: int) -> Adapted:
    """Draws initial adapters on all projections of the blocks from `layer` on."""
    config = finetune.transformer_config(sizes)
    lora = models.LoraConfig(RANK, float(RANK), targets(config))
    above = params if layer == 0 else models.split_layers(config, layer).upper_params(params)
    return Adapted(lora, layer, models.init_lora(jax.random.key(seed), above, lora))


def last_quarter(sizes: Gpt2) -> int:
    """Returns the first of the last quarter of the blocks, at least one block."""
    return sizes.num_layers - max(1, sizes.num_layers // 4)


def trainer(sizes: Gpt2, params: Params, batch: Batch, adapted: Adapted) -> Trainer:
    """Compiles a DPO step of adapters; what is below them is computed once, before the steps."""
    config = finetune.transformer_config(sizes)
    lm, base, inputs = models.transformer(config), params, batch.tokens
    if adapted.layer > 0:
        layers = models.split_layers(config, adapted.layer)
        lm, base = layers.upper, layers.upper_params(params)
        inputs = jax.jit(layers.lower)(params, batch.tokens)

    def loss(adapters: Params, frozen: Any, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del key
        base, inputs = frozen
        params = models.with_lora(base, adapters, adapted.lora)
        logits = models.lazy_logits(lm, params, inputs)
        log_probs = documents.log_prob(logits, batch.tokens, batch.mask)
        return finetune.loss_and_metrics("dpo", log_probs, batch)

    frozen = (base, inputs)
    return finetune.compile_trainer(loss, adapted.adapters, frozen, batch, LEARNING_RATE)


def draw_members(sizes: Gpt2, params: Params, seed: int, num_members: int) -> Adapted:
    """Draws the adapters of M members on the last block, none of them zero."""
    config = finetune.transformer_config(sizes)
    layers = models.split_layers(config, config.num_layers - 1)
    lora = models.LoraConfig(RANK, float(RANK), targets(config))
    ensemble = ensembles.adapters(
        layers.upper, layers.upper_params(params), lora, num_members=num_members, prior_scale=0.3
    )
    own = jax.jit(ensemble.init)(jax.random.key(seed))[1]
    return Adapted(lora, config.num_layers - 1, own)


class MembersTrainer(NamedTuple):
    """A way to take steps of M members that judge texts by a frozen readout of their features.

    Attributes:
      name: its name in the table.
      step: takes one step of every member and returns their losses, `[M]`.
      program: what was compiled; None if nothing is.
    """

    name: str
    step: Any
    program: Program | None = None


def readout(width: int) -> np.ndarray:
    """Returns the frozen weights `[D]` by which the last token's features become a score."""
    return np.cos(np.arange(width)).astype(np.float32) / np.float32(width**0.5)


def members_trainer(
    sizes: Gpt2, params: Params, batch: Batch, adapted: Adapted, name: str
) -> MembersTrainer:
    """Compiles a step of all members, one after the other; the blocks below are computed once."""
    config = finetune.transformer_config(sizes)
    layers = models.split_layers(config, adapted.layer)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    weights = jnp.asarray(readout(config.width))

    def loss(own: Params, above: Params, hidden: Array) -> Array:
        assert layers.upper.features is not None
        member = models.with_lora(above, own, adapted.lora)
        scores = layers.upper.features(member, hidden)[:, -1] @ weights
        pairs = jnp.stack(jnp.split(scores, 2), axis=-1)
        return jnp.mean(losses.reward_model_loss(pairs, jnp.zeros(len(pairs), int)))

    def step(own: Params, moments: Any, params: Params, tokens: Array) -> tuple[Params, Any, Array]:
        above, hidden = layers.upper_params(params), layers.lower(params, tokens)
        gradient = partial(jax.value_and_grad(loss), above=above, hidden=hidden)
        values, gradients = jax.lax.map(gradient, own)
        updates, moments = optimizer.update(gradients, moments, own)
        return optax.apply_updates(own, updates), moments, values

    own = jax.tree.map(jnp.copy, adapted.adapters)  # the step donates its buffers
    moments = jax.jit(optimizer.init)(own)
    args = (own, moments, params, batch.tokens)
    program = compile_program(step, *args, donate=(0, 1))

    def call() -> Array:
        nonlocal own, moments
        own, moments, values = program.call(own, moments, params, batch.tokens)
        return jax.block_until_ready(values)

    return MembersTrainer(name, call, program)
