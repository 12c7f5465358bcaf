"""The ways of the section online: a step of GRPO as `shatter finetune` takes it, and its parts."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark import finetune, lora
from experiments.benchmark.checkpoint import TOLERANCE
from experiments.benchmark.config import Gpt2
from experiments.benchmark.ways import Made, Way
from shatter import data, models, training
from shatter.cli.finetune import learning, online, places, rollouts, task
from shatter.cli.finetune.config import Config, program_config
from shatter.cli.finetune.learning import Frozen, Trainable
from shatter.cli.finetune.policy import PolicyBatch
from shatter.cli.finetune.pretrained import without_arrays
from shatter.cli.finetune.task import Task

PROMPTS = (  # of which a model gets as many words as fit
    "Write a short story about a cat that finds an old map.",
    "Explain to a child why it rains more often in autumn.",
)
NUM_GENERATIONS = 4  # completions of each prompt, so that a step has 8
LEARNING_RATE = 1e-5
GRADIENT_TOLERANCE = 1e-3  # of the gradient's norm, relative


class Ours(NamedTuple):
    """What a step needs.

    Attributes:
      config: the flags of `shatter finetune`.
      task: the model, whose texts no token ends, the prompts and the reward.
      batch: the prompts of every step.
    """

    config: Config
    task: Task
    batch: data.Batch


def different_words(prompts: Sequence[str], completions: Sequence[str], **more: Any) -> list[float]:
    """Returns how many different words each completion has: a cheap reward, for both libraries."""
    del prompts, more
    return [float(len(set(text.split()))) for text in completions]


def ways(work: str, sizes: Gpt2, seed: int, only: str | None, *, alone: bool) -> Made:
    """Takes a step of GRPO, or one part of it; see `checkpoint_ways` for the arguments.

    Args:
      work: "GRPO" or "LoRA GRPO", with ", completions" or ", update" where a part is meant.
      sizes: the sizes.
      seed: seed of adapters and completions.
      only: the name of the one way that is wanted; None = all.
      alone: whether the other libraries are missing.
    """
    kind, _, part = work.partition(", ")
    own = prepare(sizes, seed, kind.startswith("LoRA"))
    made, notes = [], []
    if only in (None, "shatter"):
        run = {"": _step, "completions": _draw, "update": _update}[part](own)
        made.append(Way("shatter", run, _num_completions(own)))
    if not alone and only != "shatter":
        from experiments.benchmark import grpo_trl

        theirs = grpo_trl.trainer(sizes, seed, own.config.use_peft)
        made.append(Way(theirs.name, getattr(theirs, part or "step"), _num_completions(own)))
        if only is None and not part:
            notes.append(_compare(own, theirs))
    return Made(made, notes)


def make_config(sizes: Gpt2, seed: int, is_lora: bool, prompts: str) -> Config:
    """Returns the flags of `shatter finetune`: GRPO as TRL's defaults have it, in float32.

    Args:
      sizes: the sizes; their folder is the model.
      seed: the seed.
      is_lora: whether adapters of all projections are trained in place of all parameters.
      prompts: the file of prompts.
    """
    adapters: dict[str, Any] = {}
    if is_lora:
        targets = lora.targets(finetune.transformer_config(sizes))
        adapters = {"use_peft": True, "lora_r": lora.RANK, "lora_alpha": float(lora.RANK)}
        adapters["lora_target_modules"] = targets
    assert sizes.folder is not None
    return Config(
        model_name_or_path=sizes.folder,
        dataset_name=prompts,
        objective="grpo",
        reward_function=("experiments.benchmark.grpo:different_words",),
        beta=0.0,
        mesh="data=1",
        per_device_train_batch_size=len(PROMPTS),
        num_generations=NUM_GENERATIONS,
        max_completion_length=sizes.num_new_tokens,
        max_length=sizes.prompt_length + sizes.num_new_tokens,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        seed=seed,
        **adapters,
    )


@functools.lru_cache(maxsize=1)
def prepare(sizes: Gpt2, seed: int, is_lora: bool) -> Ours:
    """Loads the task as the command does; then no token ends a text, so that all are as long.

    Args:
      sizes: the sizes; their folder is the model.
      seed: the seed.
      is_lora: whether adapters are trained.

    Raises:
      ValueError: if the folder has no tokenizer.
    """
    assert sizes.folder is not None
    tokenizer = models.load_tokenizer(sizes.folder)
    if tokenizer is None:
        raise ValueError(
            f"--checkpoint={sizes.folder} has no tokenizer.json, which prompts and rewards need: "
            "copy it from the model's publisher into the folder"
        )
    rows = [{"prompt": _first_words(tokenizer, prompt, sizes)} for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = make_config(sizes, seed, is_lora, str(file))
        loaded = task.load_task(config)
    model = loaded.model
    endless = dataclasses.replace(model.config, eos=())
    model = model._replace(
        config=endless,
        lm=models.transformer(endless),
        tokenizer=dataclasses.replace(model.tokenizer, eos=None),
    )
    batch = next(
        data.batches(
            loaded.train.encoded,
            batch_size=len(PROMPTS),
            seed=seed,
            max_length=config.max_length,
        )
    )
    return Ours(config, loaded._replace(model=model), batch)


def _first_words(tokenizer: models.Tokenizer, text: str, sizes: Gpt2) -> str:
    """Returns the first words of a text, with room for a BOS and an EOS in the prompt's length."""
    words = text.split()
    while len(tokenizer.encode(" ".join(words))) > sizes.prompt_length - 2:
        words.pop()
    return " ".join(words)


def prompts(own: Ours) -> list[str]:
    """Returns the prompts as texts."""
    return [str(row.row.prompt) for row in own.task.train.encoded]


def before(own: Ours) -> Trainable:
    """Returns what is trained, as it is before the first step."""
    return learning.start(own.config, own.task.model, jax.random.key(own.config.seed))


def _num_completions(own: Ours) -> int:
    return len(own.task.train.encoded) * own.config.num_generations


def _step(own: Ours) -> Callable[[], Any]:
    """Returns the whole step of the command, from prompts to updated parameters."""
    state, update = online.make_update(own.config, own.task, 1)

    def run() -> Any:
        nonlocal state
        state, measured = update(state, [own.batch])
        return jax.block_until_ready((state.params, measured.metrics))[1]

    return run


def _draw(own: Ours) -> Callable[[], Any]:
    """Returns the drawing of completions with what a step reads, without their rewards."""
    passes = rollouts.passes_in_training(own.config)
    draw = rollouts.make_draw(own.config, own.task.model, own.config.num_generations, passes)
    keys = iter(jax.random.split(jax.random.key(own.config.seed), 1000))
    trainable, rows = before(own), [own.task.train.encoded[row] for row in own.batch.row]
    return lambda: draw(trainable, next(keys), rows, own.batch.tokens.shape[-1])


def _update(own: Ours) -> Callable[[], Any]:
    """Returns the update alone, always from the same completions."""
    state, step = _learner(own)
    batch = policy_batch(own, rollouts.passes_in_training(own.config))

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((state.params, metrics))[1]

    return run


def _learner(own: Ours) -> tuple[training.TrainState, Callable[..., Any]]:
    """Returns the state before the first step, and `(state, batch) -> (state, metrics)`."""
    mesh, model = places.mesh_of(own.config), own.task.model
    learner = online.compile_learner(program_config(own.config), without_arrays(model), 1, mesh)
    start = places.put_params(own.config, before(own))
    state = learner.init(start, places.put_everywhere(own.config, jax.random.key(own.config.seed)))
    frozen = Frozen(None if model.lora is None else model.params, None)

    def step(state: training.TrainState, batch: PolicyBatch) -> tuple[training.TrainState, Any]:
        return learner.step(state, frozen, training.put_rows(mesh, batch, len(PROMPTS)))

    return state, step


def policy_batch(own: Ours, passes: rollouts.Passes = rollouts.BOTH) -> PolicyBatch:
    """Draws completions and scores them; returns them as an update reads them, on the host."""
    draw = rollouts.make_draw(own.config, own.task.model, own.config.num_generations, passes)
    key = jax.random.key(own.config.seed)
    part = online.draw_part(own.config, own.task, draw, before(own), key, own.batch)
    return online.step_batches(own.config, [part])[0]


def _compare(own: Ours, theirs: Any) -> str:
    """Returns a sentence on log-probs and gradients of the same completions in both libraries.

    The loss itself says nothing, because advantages of equally long completions add up to 0.

    Raises:
      ValueError: if they differ, or a completion has another length.
    """
    batch = policy_batch(own)
    assert batch.log_probs is not None
    drawn = theirs.completions()["completion_mask"].numpy()
    lengths = np.unique([*batch.mask.sum(-1).ravel(), *drawn.sum(1)])
    if lengths.tolist() != [own.config.max_completion_length]:
        raise ValueError(
            f"expected all completions to have {own.config.max_completion_length} tokens, found "
            f"{lengths}: the ways would not do the same work"
        )
    state, step = _learner(own)
    norm = float(step(state, batch)[1]["grad_norm"])
    found = theirs.examine(batch)
    apart = np.abs(found.log_probs - batch.log_probs[batch.mask]).max()
    ratio = found.grad_norm / norm
    if not (apart < TOLERANCE and abs(ratio - 1) < GRADIENT_TOLERANCE):
        raise ValueError(
            f"expected log-probs and the gradient's norm of {theirs.name} as ours, found log-probs "
            f"{apart:.1e} nats apart and {found.grad_norm} in place of {norm}: the ways do not do "
            "the same work"
        )
    return (
        f"of the same completions, log-probs of tokens are within {apart:.1e} nats and the "
        f"gradient's norm within {abs(ratio - 1):.1e} of it"
    )
