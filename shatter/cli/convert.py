"""`shatter convert`: writes a model as a folder, adapters merged, from GGUF, in another type."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from shatter import models
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.merged import load_merged
from shatter.cli.common.progress import open_console

EXAMPLE = "shatter convert --model_name_or_path=runs/finetune/model --output_dir=merged"


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a model as a folder: from a GGUF file, adapters merged into their base, another type.

    The result is a folder that transformers and other tools load.
    """

    model_name_or_path: str = ""
    """Required. Folder of a model or of adapters, a GGUF file, or a name on the Hugging Face
    hub."""

    output_dir: str = ""
    """Required. The new folder."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    base_model: str = ""
    """Base of a folder of adapters, where its adapter_config.json names none."""

    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Type of the parameters; stored = that of the model, or of the base of adapters, and float32
    of quantised ones."""

    max_shard_size: int = 5_000_000_000
    """Bytes of a file of weights; larger models are split over several files."""


FLAGS = Config


def check(config: Config) -> None:
    """Raises an error for a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    binary.require(config, ("model_name_or_path", "output_dir"), EXAMPLE)
    binary.check_ranges(config, {"max_shard_size": binary.Range(1, 2**62)})
    folder = Path(config.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--output_dir: {folder} exists and is not an empty folder: choose another name"
        )


def experiment(config: Config) -> None:
    """Reads the model, merges its adapters and writes the new folder."""
    check(config)
    dtype = None if config.dtype == "stored" else config.dtype
    model = load_merged(
        config.model_name_or_path,
        revision=config.model_revision,
        base=config.base_model,
        dtype=dtype,
    )
    try:
        models.save_pretrained(
            config.output_dir,
            model.config,
            model.params,
            model.tokenizer,
            max_shard_size=config.max_shard_size,
            like=model.folder,
        )
    except ValueError as error:
        raise UsageError(f"the model cannot be saved: {error}") from error
    leaves = jax.tree.leaves(model.params)
    number, kinds = sum(leaf.size for leaf in leaves), sorted({str(leaf.dtype) for leaf in leaves})
    open_console().print(f"{config.output_dir}: {number:,} parameters in {', '.join(kinds)}")
