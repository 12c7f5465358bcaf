"""The flags of `shatter finetune`, under the names that users of TRL know."""

import dataclasses
from typing import Literal

from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError

ObjectiveName = Literal["ilhf", "dpo", "ipo", "slic", "sft", "reward_model"]
Utility = Literal["sum", "mean"]
Schedule = Literal["constant", "linear", "cosine"]

EXAMPLE = (
    "shatter finetune --model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct "
    "--dataset_name=preferences.jsonl --output_dir=runs/finetune"
)

NOT_THE_RUN = (
    "output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "save_steps",
    "logging_steps",
    "eval_steps",
    "num_generations",
    "max_completion_length",
    "dry_run",
)
"""Flags that may differ between a run and its resumption: they change nothing that is learned."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a pretrained language model on what people prefer.

    Reads a Hugging Face model folder and a file of preferences, writes a model folder that other
    tools load, the metrics of every step, and an evaluation before and after. The same command
    resumes a run that was killed.
    """

    model_name_or_path: str = ""
    """Required. Folder with config.json, model.safetensors and tokenizer.json, or a name on the
    Hugging Face hub."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub; the commit is recorded."""

    dataset_name: str = ""
    """Required. File of preferences (.jsonl, .jsonl.gz, .parquet)."""

    eval_dataset_name: tuple[str, ...] = ()
    """Files of preferences held out for evaluation."""

    objective: ObjectiveName = "ilhf"
    """ilhf: inclusive learning, the model's own log-probs as utilities. dpo, ipo, slic: direct
    preference optimisation, and its relatives. sft: next-token cross-entropy of the best
    completion. reward_model: a linear head on the last token's features."""

    output_dir: str = "runs/finetune"
    """Run folder: config, metrics, checkpoints, figures, and the fine-tuned model in `model/`."""

    utility: Utility = "sum"
    """ilhf: the utility of a response. sum: its log-prob (right for generated responses and closed
    options); mean: `utility_scale` times the mean log-prob of a token (for texts people wrote)."""

    utility_scale: float = 1.0
    """ilhf with --utility=mean: nats of utility for a nat a token."""

    beta: float = 0.1
    """KL coefficient of dpo and ipo; scale of rewards/* in the metrics."""

    label_smoothing: float = 0.0
    """dpo: chance that an answer is wrong."""

    delta: float = 1.0
    """slic: the margin asked for, nats."""

    kl_weight: float = 0.0
    """ilhf: lambda_bar, weight of KL(reference || model) for one comparison (lambda of the whole
    data set over the number of comparisons), estimated from samples of the frozen model."""

    kl_samples: int = 256
    """Documents sampled from the frozen model, for the regulariser and for the metric kl."""

    kl_batch_size: int = 16
    """How many of them at a time: a step of ilhf, whose batches share them out; a call of the
    evaluation."""

    kl_length: int = 64
    """Their largest number of response tokens."""

    learning_rate: float = 5e-5
    """Largest learning rate of AdamW."""

    lr_scheduler_type: Schedule = "linear"
    """How it goes after the warm-up: to 0, or constant."""

    warmup_ratio: float = 0.0
    """Share of the steps in which it rises from 0."""

    weight_decay: float = 0.0
    """AdamW's, on every trained array."""

    adam_beta1: float = 0.9
    """AdamW's first decay."""

    adam_beta2: float = 0.999
    """AdamW's second decay."""

    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""

    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""

    per_device_train_batch_size: int = 8
    """Comparisons a step and device."""

    num_devices: int | None = None
    """Devices that share every batch; all of them if not given."""

    per_device_eval_batch_size: int = 32
    """Comparisons at a time in evaluation."""

    gradient_accumulation_steps: int = 1
    """Batches a step of the optimiser; the last step of the run may have fewer."""

    num_train_epochs: float = 1.0
    """Passes over the data; may be a fraction."""

    max_steps: int = -1
    """Steps of the optimiser; -1 = as --num_train_epochs says."""

    max_length: int = 512
    """Largest number of tokens of a prompt with a completion; longer ones are cut and counted."""

    max_prompt_length: int | None = None
    """Largest number of prompt tokens; longer prompts lose their beginning."""

    on_bad_row: Literal["fail", "skip"] = "fail"
    """What a row that cannot be used does: ends the run, or goes to bad_rows.jsonl with reasons."""

    chat_template: str | None = None
    """File with a jinja chat template, where the tokenizer has none."""

    template_date: str | None = None
    """The date that a chat template with a date reads, YYYY-MM-DD with or without THH:MM:SS. The
    time at which the run began if not given, when it is resumed too."""

    use_peft: bool = False
    """Train low-rank adapters and freeze the model."""

    lora_r: int = 16
    """Rank of the adapters."""

    lora_alpha: float = 32.0
    """Adapters are multiplied by `lora_alpha / lora_r`."""

    lora_target_modules: tuple[str, ...] = ("query", "value")
    """Projections with adapters: query, key, value or qkv, attention_out, gate and up or mlp_in,
    mlp_out (q_proj, c_attn, ... are understood). GPT-2, whose c_attn is one, takes qkv."""

    bf16: bool = False
    """Compute in bfloat16; parameters, softmax and losses stay in float32."""

    gradient_checkpointing: bool = False
    """Compute blocks again in the backward pass: less memory, more time."""

    seed: int = 42
    """Root of all random keys and of the order of the data."""

    logging_steps: int = 10
    """Steps between rows of the metrics (each is the mean since the last)."""

    eval_steps: int = -1
    """Steps between evaluations; -1 = before and after only."""

    save_steps: int = 100
    """Steps between checkpoints."""

    save_total_limit: int = 2
    """How many checkpoints are kept; with two, a run can go on from the other if one is damaged."""

    resume_from_checkpoint: Literal["auto", "never"] | int = "auto"
    """auto: from the newest checkpoint in --output_dir, if there is one. never: refuse a folder
    that holds a run. A number: from the checkpoint of that step."""

    num_generations: int = 4
    """Responses sampled before and after, for samples.txt."""

    max_completion_length: int = 64
    """Their largest number of tokens."""

    dry_run: bool = False
    """Say what would be done (rows, lengths, truncation, the first example, parameters, memory) and
    stop; nothing is compiled or written."""


SIZE = binary.whole(1, 2**16)  # of a batch
LENGTH = binary.whole(1, 2**20)  # tokens; the model's own bound is checked when it is open

RANGES = {
    "utility_scale": binary.POSITIVE,
    "beta": binary.POSITIVE,
    "label_smoothing": binary.real(0, 0.5, below=True),
    "delta": binary.POSITIVE,
    "kl_weight": binary.real(0),
    "kl_samples": binary.whole(1, 2**20),
    "kl_batch_size": SIZE,
    "kl_length": LENGTH,
    "learning_rate": binary.POSITIVE,
    "warmup_ratio": binary.real(0, 1),
    "weight_decay": binary.real(0),
    "adam_beta1": binary.real(0, 1, below=True),
    "adam_beta2": binary.real(0, 1, below=True),
    "adam_epsilon": binary.POSITIVE,
    "max_grad_norm": binary.POSITIVE,
    "per_device_train_batch_size": SIZE,
    "num_devices": binary.whole(1, other=(None,)),
    "per_device_eval_batch_size": SIZE,
    "gradient_accumulation_steps": SIZE,
    "num_train_epochs": binary.POSITIVE,
    "max_steps": binary.whole(1, other=(-1,)),
    "max_length": binary.whole(3, 2**20),
    "max_prompt_length": binary.whole(1, 2**20, other=(None,)),
    "lora_r": SIZE,
    "lora_alpha": binary.POSITIVE,
    "seed": binary.whole(0),
    "logging_steps": binary.whole(1),
    "eval_steps": binary.whole(1, other=(-1,)),
    "save_steps": binary.whole(1),
    "save_total_limit": binary.whole(1),
    "resume_from_checkpoint": binary.whole(1, other=("auto", "never")),
    "num_generations": binary.whole(0, 2**10),
    "max_completion_length": LENGTH,
}
"""What every flag that is a number may be."""


def check(config: Config) -> None:
    """Refuses values that cannot be.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    for name in ("model_name_or_path", "dataset_name"):
        if not getattr(config, name):
            raise UsageError(f"--{name} is required; for example: {EXAMPLE}")
    binary.check_ranges(config, RANGES)
    if config.template_date is not None:
        binary.date("template_date", config.template_date)
    if config.utility == "mean" and config.objective != "ilhf":
        raise UsageError(f"--utility=mean belongs to ilhf, found --objective={config.objective}")
    if config.kl_weight and config.objective != "ilhf":
        raise UsageError(f"--kl_weight belongs to ilhf, found --objective={config.objective}")
