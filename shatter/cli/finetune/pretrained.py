"""The pretrained model of a run: opened, and checked against the flags."""

import dataclasses
import datetime
import functools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from shatter import models
from shatter.cli.common import binary, compiling, run_folder
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen, weights_hash
from shatter.cli.finetune.config import ONLINE, Config
from shatter.types import Params

LORA_TARGETS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "c_attn": "qkv",
    "o_proj": "attention_out",
    "gate_proj": "gate",
    "up_proj": "up",
    "c_fc": "mlp_in",
    "down_proj": "mlp_out",
}
"""Other tools' names of projections. GPT-2's c_proj is missing, because it names two of ours."""


class Pretrained(NamedTuple):
    """An opened model folder.

    Attributes:
      config: the transformer's config.
      params: its parameters.
      tokenizer: its tokenizer.
      lm: the language model.
      lora: the adapters' config; None = every parameter is trained.
      folder: the folder that was opened.
      commit: the commit of a model of the hub; None = the folder is the user's own.
      weights: the sha256 of the parameters.
    """

    config: models.TransformerConfig
    params: Params
    tokenizer: models.Tokenizer
    lm: models.LanguageModel
    lora: models.LoraConfig | None
    folder: Path | None = None
    commit: str | None = None
    weights: str | None = None


def load_model(config: Config) -> Pretrained:
    """Opens the model folder, with the parameters in the memory of the machine.

    Raises:
      UsageError: if it cannot be opened, or a flag does not fit the model; the message says what to
        pass.
    """
    # A model may be too large for one device.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        transformer, params, tokenizer = load_frozen(
            config.model_name_or_path,
            chat_template=config.chat_template,
            revision=config.model_revision,
            date=_template_date(config),
        )
    _check_lengths(config, transformer.max_length)
    settings: dict[str, Any] = {
        "remat": config.gradient_checkpointing,
        "unrolled_layers": config.unrolled_layers,
    }
    if config.fused_attention and jax.default_backend() != "gpu":
        raise UsageError(
            f"--fused_attention needs an NVIDIA GPU, found devices of kind {jax.default_backend()}"
        )
    if config.bf16:
        settings |= {"dtype": "bfloat16", "fused_attention": config.fused_attention}
    transformer = dataclasses.replace(transformer, **settings)
    lora = _lora(config, transformer, params) if config.use_peft else None
    if config.base_dtype != "float32":
        transformer, params = models.narrow(transformer, params, config.base_dtype)
    folder, commit = models.find_pretrained(
        config.model_name_or_path, revision=config.model_revision
    )
    lm = _language_model(transformer)
    weights = weights_hash(params)
    return Pretrained(transformer, params, tokenizer, lm, lora, folder, commit, weights)


@functools.cache
def _language_model(transformer: models.TransformerConfig) -> models.LanguageModel:
    return models.transformer(transformer)


def without_arrays(model: Pretrained) -> Pretrained:
    """Returns the model without parameters and tokenizer, for functions that are compiled once.

    The result is hashable. The results for two folders with the same config are equal, and share
    compiled programs.
    """
    absent: dict[str, Any] = dict.fromkeys(("params", "tokenizer", "folder", "commit", "weights"))
    return model._replace(**absent)


def compiler_options(model: Pretrained) -> dict[str, Any] | None:
    """Returns the compiler options of every program of a run.

    In bfloat16, numbers are rounded where the model says so and not where the compiler likes to.
    Otherwise a program with gradients and one without would differ by tenths of a nat a document,
    and a model from its own reference.
    """
    options = compiling.compiler_options() or {}
    if model.config.dtype == "bfloat16":
        options["xla_allow_excess_precision"] = False
    return options or None


def _template_date(config: Config) -> datetime.datetime:
    """Returns the date for chat templates: the flag's, the resumed run's, or the present time."""
    if config.template_date is not None:
        return binary.date("template_date", config.template_date)
    file, mend = Path(config.output_dir) / "config.json", "choose another --output_dir"
    record = run_folder.read_json(file, mend=mend) if file.is_file() else {}
    if record.get("template_date") is None:
        return datetime.datetime.now().replace(microsecond=0)
    try:
        return binary.date("template_date", record["template_date"])
    except UsageError as error:
        raise UsageError(f"{file} is damaged ({error}): {mend}") from error


def _check_lengths(config: Config, positions: int) -> None:
    """Raises an error if a length exceeds the model's positions."""
    limits = {"max_length": positions}
    if config.objective in ONLINE:
        limits["max_completion_length"] = positions - 1
    elif config.objective != "reward_model":
        limits["kl_length"] = positions - 1  # a prompt has at least one token
        if config.num_generations:
            limits["max_completion_length"] = positions - 1
    for name, limit in limits.items():
        if getattr(config, name) > limit:
            raise UsageError(
                f"--{name} must be at most {limit}, because {config.model_name_or_path} has "
                f"{positions} positions, found {getattr(config, name)}"
            )


def _lora(
    config: Config, transformer: models.TransformerConfig, params: Params
) -> models.LoraConfig:
    """Returns the adapters' config; saves blank adapters, so that a failure comes before training.

    Raises:
      UsageError: if the model has no such projection, or the adapters could not be saved.
    """
    targets = tuple(LORA_TARGETS.get(name, name) for name in config.lora_target_modules)
    try:
        lora = models.LoraConfig(config.lora_r, config.lora_alpha, targets)
        init = partial(models.init_lora, params=params, lora=lora)
        shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        with tempfile.TemporaryDirectory() as folder:
            models.save_lora(folder, transformer, blank, lora)
    except ValueError as error:
        raise UsageError(f"--lora_target_modules: {error}") from error
    return lora
