"""A fine-tuning step and generation in JAX, with a GPT-2 that transformers and TRL load too."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.config import Gpt2
from experiments.benchmark.ways import Program, Way, compile_program
from shatter import documents, losses, models, training
from shatter.types import Array, Key, Metrics, Params

OBJECTIVES = ("dpo", "ilhf")
WHOLE_LOGITS = "shatter, logits held whole"
BETA = 0.1
LEARNING_RATE = 2e-5
EOS = 0
# Without YNNPACK, XLA on CPUs takes a quarter less time for a step of a wide model. It does not
# help many tiny models at once, nor generation.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Batch(NamedTuple):
    """Pairs of documents, stacked as in TRL: first all chosen ones, then all rejected ones.

    Attributes:
      tokens: int `[2 B, T]`.
      mask: bool `[2 B, T]`, true on the responses' tokens.
      ref_log_probs: `[2 B]`, log-probs of the responses under the reference, nats.
    """

    tokens: Array
    mask: Array
    ref_log_probs: Array


class Trainer(NamedTuple):
    """A way to take training steps.

    Attributes:
      name: its name in the table.
      step: takes one step, always on the same batch, and returns its loss.
      wait: `(loss)`, waits until the step has ended.
      compile_seconds: time of tracing and compiling; None if nothing is compiled.
      peak_bytes: memory that the compiler plans; None if it is not known.
    """

    name: str
    step: Callable[[], Any]
    wait: Callable[[Any], Any]
    compile_seconds: float | None = None
    peak_bytes: int | None = None


def first_losses(trainer: Trainer, steps: int = 3) -> np.ndarray:
    """Takes the first steps; returns their losses, `[steps]`."""
    return np.asarray([float(trainer.step()) for _ in range(steps)])


def way(trainer: Trainer, units: int, steps: int = 3) -> Way:
    """Returns the way that takes some steps in a call, of so many units of work each."""

    def run() -> None:
        for _ in range(steps):
            loss = trainer.step()
        trainer.wait(loss)

    return Way(trainer.name, run, steps * units, trainer.compile_seconds, trainer.peak_bytes)


def transformer_config(sizes: Gpt2) -> models.TransformerConfig:
    """Returns the config of a GPT-2 of these sizes, of a llama, or that of a pretrained model.

    On a GPU attention in bfloat16 is fused.
    """
    if sizes.folder is not None:
        return load(sizes.folder)[0]
    llama: dict[str, Any] = {}
    if sizes.num_kv_heads is not None:
        biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), False)
        kinds = {"norm": "rms", "activation": "silu", "gated": True, "rope": models.Rope(1e5)}
        llama = {"num_kv_heads": sizes.num_kv_heads, **kinds, **biases}
    return models.TransformerConfig(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        width=sizes.width,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        mlp_width=sizes.mlp_width,
        norm_epsilon=1e-5,
        tied=True,
        head_bias=False,
        dtype="bfloat16" if sizes.half else None,
        fused_attention=sizes.half and sizes.fused and jax.default_backend() == "gpu",
        unrolled_layers=sizes.num_layers if sizes.unrolled else 8,
        bos=EOS,
        eos=(EOS,),
        **llama,
    )


def with_room_to_generate(sizes: Gpt2) -> Gpt2:
    """Returns the sizes with a max_length that holds a prompt and a generated response."""
    needed = sizes.prompt_length + sizes.num_new_tokens
    return dataclasses.replace(sizes, max_length=max(sizes.max_length, needed))


@functools.cache
def load(folder: str) -> tuple[models.TransformerConfig, Params]:
    """Returns the config and the weights of a pretrained model, in float32."""
    return models.load_pretrained(folder, dtype="float32")[:2]


def init(sizes: Gpt2, seed: int) -> Params:
    """Draws random weights, or returns those of the pretrained model."""
    if sizes.folder is not None:
        return load(sizes.folder)[1]
    return jax.jit(models.transformer(transformer_config(sizes)).init)(jax.random.key(seed))


def draw_pairs(sizes: Gpt2, seed: int) -> list[tuple[np.ndarray, ...]]:
    """Draws random prompts `[P]`, each with a chosen and a rejected response `[T - P - 1]`.

    The EOS is not among the tokens of a response.
    """
    generator = np.random.default_rng(seed)
    response_length = sizes.length - sizes.prompt_length - 1
    lengths = (sizes.prompt_length, response_length, response_length)
    return [
        tuple(generator.integers(1, sizes.vocab_size, size=length) for length in lengths)
        for _ in range(sizes.num_pairs)
    ]


def make_batch(sizes: Gpt2, params: Params, seed: int) -> Batch:
    """Returns the pairs as one batch, with the model before training as the reference."""
    pairs = draw_pairs(sizes, seed)
    rows = [np.concatenate([pair[0], pair[side], [EOS]]) for side in (1, 2) for pair in pairs]
    tokens = jnp.asarray(np.stack(rows))
    mask = documents.response_mask(tokens, prompt_length=sizes.prompt_length, eos=EOS)
    lm = models.transformer(transformer_config(sizes))
    score = compile_program(partial(documents.document_log_probs, lm), params, tokens, mask)
    return Batch(tokens, mask, score.call(params, tokens, mask))


def objective(sizes: Gpt2, name: str, *, whole_logits: bool = False) -> training.Objective:
    """Returns DPO, or ILHF without its regulariser: `-log sigmoid(log pi(x_w) - log pi(x_l))`.

    The metrics are TRL's, except those that need another pass over the logits.

    Args:
      sizes: the sizes.
      name: "dpo" or "ilhf".
      whole_logits: whether the logits are held whole even where they are many.
    """
    lm = models.transformer(transformer_config(sizes))
    if whole_logits:
        lm = lm._replace(factored=None)

    def loss(params: Params, frozen: Any, key: Key, batch: Batch) -> tuple[Array, Metrics]:
        del frozen, key
        log_probs = documents.document_log_probs(lm, params, batch.tokens, batch.mask)
        return loss_and_metrics(name, log_probs, batch)

    return loss


def loss_and_metrics(name: str, log_probs: Array, batch: Batch) -> tuple[Array, Metrics]:
    """Computes the mean loss of the pairs, and the metrics.

    Args:
      name: "dpo" or "ilhf".
      log_probs: `[2 B]`, log-probs of the responses, nats.
      batch: the batch.
    """
    chosen, rejected = jnp.split(log_probs, 2)
    ref_chosen, ref_rejected = jnp.split(batch.ref_log_probs, 2)
    if name == "dpo":
        each = losses.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=BETA)
    else:
        pairs = jnp.stack([chosen, rejected], axis=1)
        each = losses.ilhf_loss(pairs, jnp.zeros(len(pairs), int))
    rewards = BETA * (chosen - ref_chosen), BETA * (rejected - ref_rejected)
    metrics = {
        "rewards/chosen": jnp.mean(rewards[0]),
        "rewards/rejected": jnp.mean(rewards[1]),
        "rewards/margins": jnp.mean(rewards[0] - rewards[1]),
        "rewards/accuracies": jnp.mean(rewards[0] > rewards[1]),
        "logps/chosen": jnp.mean(chosen),
        "logps/rejected": jnp.mean(rejected),
    }
    return jnp.mean(each), metrics


def trainer(
    sizes: Gpt2, name: str, params: Params, batch: Batch, *, whole_logits: bool = False
) -> Trainer:
    """Compiles one step: gradient, AdamW and metrics; the state is donated."""
    loss = objective(sizes, name, whole_logits=whole_logits)
    made = compile_trainer(loss, params, None, batch, LEARNING_RATE)
    return made._replace(name=WHOLE_LOGITS) if whole_logits else made


def compile_trainer(
    objective: training.Objective,
    trainable: Params,
    frozen: Any,
    batch: Any,
    learning_rate: float,
) -> Trainer:
    """Compiles one step of AdamW on an objective; the state is donated.

    Args:
      objective: as in `shatter.training`.
      trainable: the parameters before the first step.
      frozen: what the objective reads and does not train.
      batch: the batch of every step.
      learning_rate: of AdamW.
    """
    learner = training.learner(objective, optax.adamw(learning_rate, weight_decay=0.0))
    # Copied, because the step donates its buffers.
    state = learner.init(jax.tree.map(jnp.copy, trainable), jax.random.key(0))
    program = _compile_step(learner.step, state, frozen, batch, donate=(0,))

    def step() -> Array:
        nonlocal state
        state, metrics = program.call(state, frozen, batch)
        return metrics["loss"]

    return Trainer(
        "shatter", step, jax.block_until_ready, program.compile_seconds, program.peak_bytes
    )


def draw_prompts(sizes: Gpt2, seed: int) -> np.ndarray:
    """Draws random prompts, `[num_samples, P]`."""
    generator = np.random.default_rng(seed)
    shape = (sizes.num_samples, sizes.prompt_length)
    return generator.integers(1, sizes.vocab_size, size=shape)


def compile_sampler(sizes: Gpt2, params: Params, prompts: np.ndarray, *, greedy: bool) -> Program:
    """Compiles generation without EOS.

    Returns:
      `(params, key, prompts) -> tokens [num_samples, P + num_new_tokens]`.
    """
    lm = models.transformer(transformer_config(sizes))

    def generate(params: Params, key: Key, prompts: Array) -> Array:
        samples = documents.sample(
            lm,
            params,
            key,
            prompts,
            num_samples=1,
            max_length=sizes.num_new_tokens,
            top_k=1 if greedy else None,
        )
        return samples.tokens[:, 0]

    return compile_program(generate, params, jax.random.key(0), jnp.asarray(prompts))


def generation_way(sizes: Gpt2, params: Params, prompts: np.ndarray) -> Way:
    """Returns the way that samples with the cache in one jitted loop."""
    program = compile_sampler(sizes, params, prompts, greedy=False)
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    on_device = jnp.asarray(prompts)

    def run() -> Array:
        return jax.block_until_ready(program.call(params, next(keys), on_device))

    units = sizes.num_samples * sizes.num_new_tokens
    return Way("shatter", run, units, program.compile_seconds, program.peak_bytes)


def greedy(sizes: Gpt2, params: Params, prompts: np.ndarray) -> np.ndarray:
    """Returns the likeliest continuations, `[num_samples, P + num_new_tokens]`."""
    program = compile_sampler(sizes, params, prompts, greedy=True)
    return np.asarray(program.call(params, jax.random.key(0), jnp.asarray(prompts)))


def _compile_step(
    function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> Program:
    """Compiles with `CPU_OPTIONS` if this backend and version of XLA have them."""
    if jax.default_backend() == "cpu":
        try:
            return compile_program(function, *args, donate=donate, options=CPU_OPTIONS)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
    return compile_program(function, *args, donate=donate)
