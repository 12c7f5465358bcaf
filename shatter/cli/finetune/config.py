"""The flags of `shatter finetune`, under the names that users of TRL know."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from shatter import data
from shatter.cli.common.people import LEAST_GROUP
from shatter.cli.common.utilities import Form

ObjectiveName = Literal[
    "ilhf", "dpo", "ipo", "slic", "sft", "reward_model", "rloo", "grpo", "ppo", "posterior"
]
ONLINE = ("rloo", "grpo", "ppo", "posterior")
"""Objectives that learn from a reward of the model's own completions."""
BaseDtype = Literal["float32", "bfloat16", "int8"]
Schedule = Literal["constant", "linear", "cosine"]

EXAMPLE = (
    "shatter finetune --model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct "
    "--dataset_name=preferences.jsonl --output_dir=runs/finetune"
)

MESH_AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh that fine-tuning can use."""

FREE = (
    "output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "save_steps",
    "logging_steps",
    "eval_steps",
    "num_generations",
    "max_completion_length",
    "dry_run",
    # Weights and data are compared by their checksums, so files may be given by other paths.
    "model_name_or_path",
    "model_revision",
    "commit",
    "dataset_name",
    "eval_dataset_name",
    "reward_model",
    "data_dir",  # a flag of older versions
    "num_devices",  # another
    # The comparisons of a batch are counted over all devices (`batch_size`) and compared.
    "mesh",
    "per_device_train_batch_size",
    "multihost",
    "coordinator_address",
    "num_processes",
    "process_id",
    "initialization_timeout",
    "heartbeat_timeout",
)
"""Fields of config.json that may differ between a run and its resumption, because they change
nothing that is learned."""

OF_PEOPLE = ("condition_on", "num_examples", "condition_dropout", "min_group_size")
"""Flags that say how rows are made into prompts, and which of them are evaluated together."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a pretrained language model on people's preferences.

    The command reads a Hugging Face model folder and a file of preferences. It writes a model
    folder that other tools can load, metrics of the training, and an evaluation before and after.
    The same command resumes a run that was killed.
    """

    REMOVED: ClassVar[Mapping[str, str]] = {
        "data_dir": "pass the model's folder as --model_name_or_path and the file of preferences "
        f"as --dataset_name; for example: {EXAMPLE}",
        "num_devices": "--num_devices=N is --mesh=data=N",
    }
    OLDER_DEFAULTS: ClassVar[Mapping[str, Any]] = {"utility": "sum"}

    model_name_or_path: str = ""
    """Required. A folder with config.json, model.safetensors and tokenizer.json, a GGUF file, or a
    name on the Hugging Face hub."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub; its commit is recorded."""

    dataset_name: str = ""
    """Required. A file of preferences (.jsonl, .jsonl.gz, .parquet); for rloo, grpo, ppo and
    posterior a prompt is all that a row needs."""

    eval_dataset_name: tuple[str, ...] = ()
    """Files of preferences that are held out for evaluation."""

    objective: ObjectiveName = "ilhf"
    """ilhf: inclusive learning from human feedback, whose utilities are the model's own log-probs.
    dpo, ipo, slic: direct preference optimisation and two relatives. sft: next-token cross-entropy
    of the best completion. reward_model: a linear head on the last token's features. rloo, grpo,
    ppo, posterior: reinforcement learning from a reward of the model's own completions."""

    reward_model: str = ""
    """rloo, grpo, ppo, posterior: a model folder that --objective=reward_model wrote, whose score
    of a completion is its reward."""

    reward_function: tuple[str, ...] = ()
    """rloo, grpo, ppo, posterior: MODULE:FUNCTION, one or several. The function gets a list of
    prompts (as they stand in the file) and one of completions (texts), and returns one of numbers.
    Modules are also looked for in the present folder."""

    reward_weights: tuple[float, ...] = ()
    """The weight of every reward in their sum, that of --reward_model first; 1 each if not given.
    """

    temperature: float = 1.0
    """rloo, grpo, ppo, posterior: divides the logits of every token. The policy that learns is the
    model at this temperature."""

    top_k: int | None = None
    """rloo, grpo, ppo, posterior: draw among the k likeliest tokens; all if not given. With this or
    one of the next two flags completions are drawn from another law than the policy's, and
    gradients are biased."""

    top_p: float | None = None
    """rloo, grpo, ppo, posterior: draw among the smallest set of tokens with this mass."""

    min_p: float | None = None
    """rloo, grpo, ppo, posterior: draw among the tokens of at least this share of the largest
    probability."""

    num_iterations: int = 1
    """rloo, grpo, ppo: updates by the same completions. Steps are counted by completions drawn, so
    a step makes this many updates."""

    epsilon: float = 0.2
    """rloo, grpo, ppo: ratios of the policy to that which drew are clipped at 1 - epsilon."""

    epsilon_high: float | None = None
    """rloo, grpo: they are clipped at 1 + epsilon_high too; --epsilon if not given."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """grpo: what a reward less its group's mean is divided by: the standard deviation of its group,
    that of all rewards of the step, or nothing."""

    loss_type: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """grpo: what the sum over tokens is divided by. dapo: the tokens of all completions of the
    step. grpo: each completion's own. dr_grpo: --max_completion_length."""

    gamma: float = 1.0
    """ppo: the discount of a later token's reward. Below 1 the objective is no longer that of beta.
    """

    lam: float = 1.0
    """ppo: lambda of generalised advantages. 1: what followed a token, less its value, which no
    error of the values biases. 0: the token's own reward and the value after it. TRL's 0.95 has
    less variance once the values are good; before, the reward fades over 20 tokens."""

    vf_coef: float = 0.1
    """ppo: the weight of the value function's loss. The value function is a linear head on the last
    hidden layer of the model, which learns from this loss too."""

    vf_learning_rate: float = 3e-2
    """ppo: AdamW's learning rate of the head at its peak, about what a step changes a value by. The
    head starts at 0, so it has to reach the scale of the rewards."""

    cliprange_value: float = 0.2
    """ppo: with several --num_iterations no gradient passes to a value that has gone further than
    this towards its target since the completions were drawn."""

    output_dir: str = "runs/finetune"
    """The run folder: config, metrics, checkpoints, a figure, and the fine-tuned model in `model/`.
    """

    utility: Form = "tilt"
    """ilhf: the utility of a response. tilt: its log-prob less the reference's, where people choose
    by taste. sum: its log-prob, where they choose a response as often as the model should give it,
    as people do who pick one of a question's options. mean and ratio: `utility_scale` times sum and
    tilt a token. tilt and sum, which add up over tokens, want a learning rate of about 1e-5 where
    a small model is trained whole; --learning_rate says how to tell that it is too high."""

    utility_scale: float = 1.0
    """ilhf with --utility=mean or ratio: nats of utility per nat of log-prob a token."""

    condition_on: data.ConditionOn = "none"
    """What prompts say of the person who answers. none: nothing, so the model answers as all people
    together. group: the row's group. annotator: the person's name. examples: earlier answers of the
    person, from the training rows. One model learns to answer with and without it; held-out persons
    without training rows are shown as their group, and unknown groups as everybody."""

    num_examples: int = 4
    """--condition_on=examples: the largest number of earlier answers in a prompt."""

    condition_dropout: float = 0.2
    """Share of every training answer's weight that goes to prompts that say less of the person,
    down to nothing, so that the same model answers as a group and as everybody."""

    min_group_size: int = LEAST_GROUP
    """Smallest number of people in a group that prompts or evaluations may name; with
    --condition_on, smaller groups are refused."""

    beta: float = 0.1
    """dpo, ipo, rloo, grpo, ppo, posterior: the KL coefficient, which may be 0 for rloo, grpo and
    ppo. For objectives that learn from comparisons also the scale of rewards/* in the metrics."""

    label_smoothing: float = 0.0
    """dpo: the probability that an answer is wrong."""

    delta: float = 1.0
    """slic: the margin that the loss asks for, nats."""

    kl_weight: float = 0.0
    """ilhf: lambda_bar, the weight of KL(reference || model) per comparison, that is the lambda of
    the whole data set over its number of comparisons. The KL is estimated from samples of the
    frozen model."""

    kl_samples: int = 256
    """Number of documents sampled from the frozen model, for the regulariser and the metric kl."""

    kl_batch_size: int = 16
    """How many of these samples one step of ilhf uses (its accumulated batches share them out),
    and how many the evaluation scores at a time."""

    kl_length: int = 64
    """Largest number of response tokens of these samples."""

    learning_rate: float = 5e-5
    """AdamW's learning rate at its peak. ilhf with --utility=tilt or sum wants about 1e-5 where a
    small model is trained whole. It is too high if the log-loss of choices on a held-out file ends
    above that of a coin, log 2 = .693 nats for two completions: lower it."""

    lr_scheduler_type: Schedule = "linear"
    """The learning rate after the warm-up: linear or cosine go to 0."""

    warmup_ratio: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""

    weight_decay: float = 0.0
    """AdamW's weight decay, on every trained array."""

    adam_beta1: float = 0.9
    """AdamW's decay of the first moment."""

    adam_beta2: float = 0.999
    """AdamW's decay of the second moment."""

    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""

    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped."""

    per_device_train_batch_size: int = 8
    """Comparisons per batch and device, counted over the axes data and fsdp; for rloo, grpo, ppo
    and posterior prompts, each with --num_generations completions."""

    mesh: str = ""
    """How the devices share the work, for example data=2,fsdp=4: data shares every batch, fsdp the
    batch and the parameters, tensor the products. Not given = data over all devices."""

    multihost: bool = False
    """This is one of several processes, each started with the same command, on one machine or more.
    SLURM, GKE and Open MPI say where they meet; elsewhere the next three flags do."""

    coordinator_address: str | None = None
    """HOST:PORT on the machine of process 0, with a port that is free and open to the others."""

    num_processes: int | None = None
    """Number of processes."""

    process_id: int | None = None
    """Number of this process, from 0."""

    initialization_timeout: int = 300
    """Seconds to wait for the other processes at the start."""

    heartbeat_timeout: int = 100
    """Seconds after which the processes end if one of them has ended without a word."""

    per_device_eval_batch_size: int = 32
    """Comparisons per batch and device in evaluation."""

    gradient_accumulation_steps: int = 1
    """Batches per step of the optimiser; the last step of the run may have fewer."""

    num_train_epochs: float = 1.0
    """Passes over the data, which may be a fraction."""

    max_steps: int = -1
    """Steps of the optimiser; -1 = as many as --num_train_epochs makes."""

    max_length: int = 512
    """Largest number of tokens of a prompt with its completion; longer ones are cut and counted."""

    max_prompt_length: int | None = None
    """Largest number of prompt tokens; longer prompts lose their beginning."""

    on_bad_row: Literal["fail", "skip"] = "fail"
    """What to do with a row that cannot be used. fail: end the run. skip: write the row and the
    reason to bad_rows_*.jsonl and go on."""

    chat_template: str | None = None
    """A file with a jinja chat template, or the name plain; it replaces the tokenizer's own."""

    template_date: str | None = None
    """The date for chat templates that contain one: YYYY-MM-DD, with or without THH:MM:SS. If not
    given it is the time at which the run began, in a resumed run too."""

    use_peft: bool = False
    """Train low-rank adapters and leave the model itself as it is."""

    lora_r: int = 16
    """Rank of the adapters."""

    lora_alpha: float = 32.0
    """The adapters' output is multiplied by `lora_alpha / lora_r`."""

    lora_target_modules: tuple[str, ...] = ("query", "value")
    """Projections that get adapters: query, key and value, or qkv for the three as one (GPT-2 has
    only that); attention_out; gate and up, or mlp_in (GPT-2); mlp_out. The names q_proj, c_attn,
    ... are understood too."""

    base_dtype: BaseDtype = "float32"
    """With --use_peft: the type in which the frozen model's matrices are held. bfloat16 takes half
    of the memory; int8, integers with a float32 scale for each channel, a quarter. Products stay in
    float32, or with --bf16 in bfloat16. The reference is the model as held."""

    bf16: bool = False
    """Compute in bfloat16; parameters, softmax and losses stay in float32."""

    fused_attention: bool = False
    """Compute attention by cuDNN's fused kernel, which needs --bf16 and an NVIDIA GPU."""

    unrolled_layers: int = 8
    """Unroll models of at most this many blocks, and scan the others. Unrolled, a step takes less
    time, on a GPU a quarter less at 12 and at 30 blocks, and longer to compile."""

    gradient_checkpointing: bool = False
    """Compute blocks a second time in the backward pass: less memory, more time."""

    seed: int = 42
    """Seed of all random keys and of the order of the data."""

    logging_steps: int = 10
    """Steps between rows of the metrics; each row is the mean since the one before."""

    eval_steps: int = -1
    """Steps between evaluations; -1 = only before and after the training."""

    save_steps: int = 100
    """Steps between checkpoints."""

    save_total_limit: int = 2
    """How many checkpoints are kept. With two, a run can go on from one if the other is damaged."""

    resume_from_checkpoint: Literal["auto", "never"] | int = "auto"
    """auto: go on from the newest checkpoint in --output_dir, if there is one. never: end with an
    error if the folder holds a run. A number: go on from the checkpoint of that step."""

    num_generations: int = 4
    """Responses per prompt in samples.txt, sampled from the model before and after. For rloo, grpo,
    ppo and posterior also the completions to a prompt that are drawn and learned from."""

    max_completion_length: int = 64
    """Largest number of tokens of these responses; for rloo, grpo, ppo and posterior, of
    completions."""

    dry_run: bool = False
    """Show what a run would do (rows, lengths, truncation, the first example, parameters, memory)
    and stop. Nothing is compiled or written."""


def program_config(config: Config) -> Config:
    """Returns the config with defaults in the fields that no compiled program reads.

    Equal results share compiled programs.
    """
    unread = (*FREE, "seed", *OF_PEOPLE)
    defaults: dict[str, Any] = {
        field.name: field.default for field in dataclasses.fields(config) if field.name in unread
    }
    return dataclasses.replace(config, **defaults)
