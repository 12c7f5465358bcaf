"""The same step of GRPO by TRL's GRPOTrainer, on peft's adapters or on the whole model."""

import functools
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.benchmark import grpo, lora, peers, peft_models
from experiments.benchmark.config import Gpt2
from experiments.benchmark.grpo import Ours
from shatter import losses
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.policy import PolicyBatch


class Examined(NamedTuple):
    """What TRL computes from given completions.

    Attributes:
      log_probs: of all their tokens, prompt by prompt, nats.
      grad_norm: the norm of the gradient of what is trained.
    """

    log_probs: np.ndarray
    grad_norm: float


class Theirs(NamedTuple):
    """TRL's trainer, which both parts and the whole step share.

    Attributes:
      name: its name in the table.
      step: takes a step, from prompts to updated parameters.
      completions: draws completions and scores them.
      update: takes the update alone, always from the same completions.
      examine: reads completions of ours and changes nothing.
    """

    name: str
    step: Callable[[], Any]
    completions: Callable[[], Any]
    update: Callable[[], Any]
    examine: Callable[[PolicyBatch], Examined]


@functools.lru_cache(maxsize=1)
def trainer(sizes: Gpt2, seed: int, is_lora: bool) -> Theirs:
    """Returns TRL's trainer with our model, prompts, reward and adapters.

    It runs in float32 without gradient checkpointing, and no token ends a completion. A step is
    `training_step`, which draws the completions first, clipping of the gradient's norm as in
    `GRPOTrainer.train`, and the step of the optimiser. The data loader, the schedule and the log
    are left out.

    Args:
      sizes: the sizes.
      seed: the seed.
      is_lora: whether adapters are trained in place of all parameters.

    Raises:
      ValueError: if TRL's tokens of a prompt differ from ours.
    """
    import torch

    own = grpo.prepare(sizes, seed, is_lora)
    made = make_trainer(sizes, own)
    texts = grpo.prompts(own)
    rows = [{"prompt": text} for text in texts for _ in range(own.config.num_generations)]
    parameters = [p for p in made.model.parameters() if p.requires_grad]

    def finish() -> None:
        made.accelerator.clip_grad_norm_(parameters, own.config.max_grad_norm)
        made.optimizer.step()
        made.optimizer.zero_grad()

    def step() -> Any:
        loss = made.training_step(made.model, rows, None)
        finish()
        return loss

    @functools.cache
    def inputs() -> Any:
        return made._generate_and_score_completions(rows)

    def update() -> Any:
        with made.compute_loss_context_manager():
            loss = made.compute_loss(made.model, inputs())
        made.accelerator.backward(loss)
        finish()
        return loss

    def examine(batch: PolicyBatch) -> Examined:
        given = to_inputs(own.config, batch)
        tokens = torch.cat([given["prompt_ids"], given["completion_ids"]], dim=1)
        attention = torch.cat([given["prompt_mask"], given["completion_mask"]], dim=1)
        length = given["completion_ids"].shape[1]
        with torch.no_grad():
            log_probs, *_ = made._get_per_token_logps_and_entropies(
                made.model, tokens, attention, length
            )
        made.compute_loss(made.model, given).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        made.optimizer.zero_grad()
        return Examined(log_probs.numpy().ravel(), float(norm))

    name = "TRL + peft" if is_lora else "TRL"
    draw = lambda: made._generate_and_score_completions(rows)
    return Theirs(name, step, draw, update, examine)


def make_trainer(sizes: Gpt2, own: Ours, **changes: Any) -> Any:
    """Makes a GRPOTrainer with our model, prompts, reward and adapters.

    Args:
      sizes: the sizes.
      own: what our step needs.
      **changes: other arguments of `GRPOConfig`.

    Raises:
      ValueError: if TRL's tokens of a prompt differ from ours.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    datasets, trl, config = peers.module("datasets"), peers.module("trl"), own.config
    datasets.disable_progress_bars()
    adapted = None
    if own.task.model.lora is not None:
        adapted = lora.Adapted(own.task.model.lora, 0, grpo.before(own).model)
    texts = grpo.prompts(own)
    never = sizes.vocab_size  # no draw gives this token
    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(texts) * config.num_generations,
            num_generations=config.num_generations,
            max_completion_length=config.max_completion_length,
            generation_kwargs={"eos_token_id": never},
            mask_truncated_completions=False,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type="constant",
            beta=config.beta,
            loss_type=config.loss_type,
            scale_rewards=config.scale_rewards,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
            **changes,
        )
        made = trl.GRPOTrainer(
            model=peers.model(sizes, own.task.model.params),
            reward_funcs=grpo.different_words,
            args=args,
            train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=peers.module("transformers").AutoTokenizer.from_pretrained(
                sizes.folder
            ),
            peft_config=None if adapted is None else peft_models.adapter_config(sizes, adapted),
        )
    if adapted is not None:
        peft_models.set_adapters(made.model, sizes, adapted, adapted.adapters, "default")
    made.eos_token_ids = [never]
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # which `train` would set
    made.model.train()
    _check_prompts(made, own)
    return made


def _check_prompts(made: Any, own: Ours) -> None:
    found = made._tokenize_prompts(grpo.prompts(own))[0]
    expected = [row.prompt.tolist() for row in own.task.train.encoded]
    if list(found) != expected:
        raise ValueError(
            f"expected TRL's tokens of the prompts to equal ours, {expected}, found {found}: its "
            "tokenisation has changed; compare with the version of trl in README.md"
        )


def to_inputs(config: Config, batch: PolicyBatch) -> dict[str, Any]:
    """Returns completions of ours as TRL's loss reads them.

    Args:
      config: the flags.
      batch: completions that all have `max_completion_length` tokens or padding on the right.
    """
    import torch

    own = {name: np.asarray(value) for name, value in batch._asdict().items()}
    flat = {
        name: own[name].reshape(-1, own[name].shape[-1]) for name in ("tokens", "mask", "valid")
    }
    start = flat["tokens"].shape[1] - config.max_completion_length
    advantages = losses.grpo_advantages(
        jnp.asarray(own["rewards"]), jnp.asarray(own["deviations"][:, None])
    )
    as_int = lambda array: torch.tensor(array).long()
    return {
        "prompt_ids": as_int(flat["tokens"][:, :start]),
        "prompt_mask": as_int(flat["valid"][:, :start]),
        "completion_ids": as_int(flat["tokens"][:, start:]),
        "completion_mask": as_int(flat["mask"][:, start:]),
        "advantages": torch.tensor(np.ravel(advantages)),
        "num_items_in_batch": torch.tensor(flat["mask"].sum()),
    }
