"""What flags of `shatter finetune` may be, and which of them a run and its resumption share."""

import dataclasses
import importlib.util

from shatter import training
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.processes import Cluster, check_cluster
from shatter.cli.finetune.config import EXAMPLE, FREE, MESH_AXES, ONLINE, Config

SIZE = binary.whole(1, 2**16)  # of a batch
LENGTH = binary.whole(1, 2**20)  # tokens; the model's own limit is checked when it is opened

RANGES = {
    "utility_scale": binary.POSITIVE,
    "num_examples": binary.whole(1, 2**10),
    "condition_dropout": binary.real(0, 1, below=True),
    "min_group_size": binary.whole(1),
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
    "unrolled_layers": binary.whole(0, 2**20),
    "per_device_train_batch_size": SIZE,
    "num_processes": binary.whole(1, 2**20, other=(None,)),
    "process_id": binary.whole(0, 2**20, other=(None,)),
    "initialization_timeout": binary.whole(1, 86_400),
    "heartbeat_timeout": binary.whole(1, 86_400),
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
    "reward_weights": binary.real(0),
    "temperature": binary.POSITIVE,
    "top_k": binary.whole(1, other=(None,)),
    "top_p": binary.Range(0, 1, above=True, other=(None,)),
    "min_p": binary.Range(0, 1, other=(None,)),
    "num_iterations": binary.whole(1, 2**10),
    "epsilon": binary.Range(0, 1, above=True),
    "epsilon_high": binary.Range(0, binary.LARGEST, above=True, other=(None,)),
    "gamma": binary.real(0, 1),
    "lam": binary.real(0, 1),
    "vf_coef": binary.real(0),
    "vf_learning_rate": binary.POSITIVE,
    "cliprange_value": binary.POSITIVE,
}
"""The range of every flag that is a number."""


def check(config: Config) -> None:
    """Raises an error if a flag has an impossible value.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    binary.require(config, ("model_name_or_path", "dataset_name"), EXAMPLE)
    may_be_free = {"beta": binary.real(0)} if config.objective in ("rloo", "grpo", "ppo") else {}
    binary.check_ranges(config, RANGES | may_be_free)
    if config.template_date is not None:
        binary.date("template_date", config.template_date)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, place in _unread(config).items():
        if (value := getattr(config, name)) != defaults[name]:
            raise UsageError(
                f"--{name}={value} belongs to {place}: leave --{name} out, which nothing reads, or "
                f"change {place.split('=')[0]}"
            )
    if config.objective in ONLINE:
        _check_online(config)
    if config.fused_attention and not config.bf16:
        raise UsageError("--fused_attention needs --bf16, found no --bf16")
    if config.base_dtype != "float32" and not config.use_peft:
        raise UsageError(
            f"--base_dtype={config.base_dtype} belongs to --use_peft, because a model that is "
            "trained itself needs float32: pass --use_peft too"
        )
    if config.kl_weight and config.objective != "ilhf":
        raise UsageError(
            f"--kl_weight belongs to --objective=ilhf, found --objective={config.objective}"
        )
    if config.mesh:
        try:
            training.mesh_sizes(config.mesh, MESH_AXES)
        except ValueError as error:
            raise UsageError(f"--mesh: {error}") from error
    meeting = ("coordinator_address", "num_processes", "process_id")
    if not config.multihost and any(getattr(config, name) is not None for name in meeting):
        raise UsageError(f"--{', --'.join(meeting)} belong to --multihost: add it")
    if (cluster := cluster_of(config)) is not None:
        check_cluster(cluster)


def _check_online(config: Config) -> None:
    """Raises an error if flags of reinforcement learning do not belong together."""
    about = f"--objective={config.objective}"
    sources = (*((config.reward_model,) if config.reward_model else ()), *config.reward_function)
    if not sources:
        raise UsageError(
            f"{about} needs a reward, found neither --reward_model nor --reward_function: pass "
            "--reward_model=FOLDER that --objective=reward_model wrote, or "
            "--reward_function=MODULE:FUNCTION"
        )
    if config.objective == "ppo" and importlib.util.find_spec("rlax") is None:
        raise UsageError(
            "--objective=ppo needs rlax, found no such package: pip install 'shatter-lm[rl]'"
        )
    if len(set(sources)) < len(sources):
        raise UsageError(
            f"--reward_function: expected different functions, found {', '.join(sources)}: name "
            "each once, and give its weight by --reward_weights"
        )
    if config.reward_weights and len(config.reward_weights) != len(sources):
        raise UsageError(
            f"--reward_weights must be one number for each of the {len(sources)} rewards "
            f"({', '.join(sources)}), found {len(config.reward_weights)}: {config.reward_weights}"
        )
    least = 1 if config.objective in ("ppo", "posterior") else 2
    if config.num_generations < least:
        raise UsageError(
            f"--num_generations must be at least {least} with {about}, which "
            + ("draws completions" if least == 1 else "compares the completions to a prompt")
            + f", found {config.num_generations}: pass --num_generations=4"
        )
    if config.max_length <= config.max_completion_length:
        raise UsageError(
            f"--max_length must be above --max_completion_length={config.max_completion_length}, "
            f"because a prompt has at least one token, found {config.max_length}: raise "
            "--max_length or lower --max_completion_length"
        )
    room = config.max_length - config.max_completion_length
    if config.max_prompt_length is not None and config.max_prompt_length > room:
        raise UsageError(
            f"--max_prompt_length must be at most {room}, because --max_length={config.max_length} "
            f"leaves {config.max_completion_length} tokens to --max_completion_length, found "
            f"{config.max_prompt_length}: lower it or raise --max_length"
        )
    if config.condition_on != "none":
        raise UsageError(
            f"--condition_on={config.condition_on} belongs to objectives that learn from answers, "
            f"found {about}: leave --condition_on out"
        )
    if config.multihost:
        raise UsageError(f"--multihost does not go with {about}: run one process with --mesh")


def cluster_of(config: Config) -> Cluster | None:
    """Returns where the processes of a run meet; None if there is one process."""
    fields = (getattr(config, name) for name in Cluster._fields)
    return Cluster(*fields) if config.multihost else None


def free_fields(config: Config) -> tuple[str, ...]:
    """Returns the fields that may differ between a run and its resumption."""
    free = (*FREE, *_unread(config))
    if config.objective in ONLINE:  # which learns from the completions that these flags describe
        learned = ("num_generations", "max_completion_length")
        free = tuple(name for name in free if name not in learned)
    return free


def _unread(config: Config) -> dict[str, str]:
    """Returns the fields that nothing reads, each with the flags that would have it read.

    They may be recorded with other values: older versions had another default of --utility, and
    took values of flags that were not read.
    """
    unread = {}
    if config.objective != "ilhf":
        place = f"--objective=ilhf, found --objective={config.objective}"
        unread = dict.fromkeys(("utility", "utility_scale"), place)
    elif config.utility not in ("mean", "ratio"):
        unread["utility_scale"] = f"--utility=mean or ratio, found --utility={config.utility}"
    unread |= _unread_online(config)
    if config.condition_on != "examples":
        unread["num_examples"] = (
            f"--condition_on=examples, found --condition_on={config.condition_on}"
        )
    if config.condition_on == "none":
        unread["condition_dropout"] = (
            "--condition_on=group, annotator or examples, found --condition_on=none"
        )
    return unread


def _unread_online(config: Config) -> dict[str, str]:
    """Returns the flags of reinforcement learning that nothing reads, as `_unread` does."""
    found = f"found --objective={config.objective}"
    unread: dict[str, str] = {}
    if config.objective in ONLINE:
        names = ("kl_length", "kl_batch_size", "label_smoothing", "delta", "min_group_size")
        unread |= dict.fromkeys(
            names, f"--objective=ilhf and others that learn from answers, {found}"
        )
    if config.objective not in ONLINE:
        rewards = ("reward_model", "reward_function", "reward_weights")
        sampling = ("temperature", "top_k", "top_p", "min_p")
        unread |= dict.fromkeys(
            (*rewards, *sampling), f"--objective=rloo, grpo, ppo or posterior, {found}"
        )
    if config.objective not in ("rloo", "grpo", "ppo"):
        of_ratios = ("num_iterations", "epsilon")
        unread |= dict.fromkeys(of_ratios, f"--objective=rloo, grpo or ppo, {found}")
    if config.objective not in ("rloo", "grpo"):
        unread["epsilon_high"] = f"--objective=rloo or grpo, {found}"
    if config.objective != "ppo":
        of_values = ("gamma", "lam", "vf_coef", "vf_learning_rate", "cliprange_value")
        unread |= dict.fromkeys(of_values, f"--objective=ppo, {found}")
    if config.objective != "grpo":
        unread |= dict.fromkeys(("scale_rewards", "loss_type"), f"--objective=grpo, {found}")
    return unread
