"""Folders of pretrained models in the Hugging Face layout: to parameters, and back."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shatter.models.families import FAMILIES, family_of
from shatter.models.pretrained_config import read_config, write_config
from shatter.models.pretrained_weights import (
    INDEX,
    WEIGHTS,
    existing,
    read_weights,
    safetensors,
    write_weights,
)
from shatter.models.tokenizer import FILES as TOKENIZER_FILES
from shatter.models.tokenizer import Tokenizer, load_tokenizer, read_json
from shatter.models.transformer_config import TransformerConfig
from shatter.types import Params

_WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_HUB_FILES = ("config.json", "generation_config.json", "model*.safetensors", INDEX)


def load_pretrained(
    folder: str | Path, *, dtype: str | None = None
) -> tuple[TransformerConfig, Params, Tokenizer | None]:
    """Loads a model of the GPT-2, Llama (2, 3) or Qwen (2, 2.5, 3) family.

    Files are memory-mapped and read tensor by tensor; the name and shape of every one is checked.

    Args:
      folder: with config.json, model.safetensors (or shards and model.safetensors.index.json) and
        tokenizer.json; or a name on the Hugging Face hub, "org/name".
      dtype: of the parameters, such as "float32" or "bfloat16". None = as stored.

    Returns:
      `(config, params, tokenizer)`; `transformer(config).apply(params, tokens)` gives the logits.
      The tokenizer is None without a tokenizer.json.

    Raises:
      FileNotFoundError: if there is no such folder, it lacks a file, or the hub cannot be reached.
      ValueError: if the family or a setting is not supported, a tensor is missing, unexpected or
        misshapen, or the tokenizer has more tokens than the model.
      ImportError: without the packages of the extra "pretrained".
    """
    safetensors()
    path = _find(folder)
    settings = read_json(existing(path / "config.json"))
    generation_file = path / "generation_config.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    try:
        config = read_config(settings, generation)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    tokenizer = load_tokenizer(path)
    _check_vocabulary(tokenizer, config, path)
    params = read_weights(path, config, FAMILIES[settings["model_type"]], dtype)
    return config, params, tokenizer


def save_pretrained(
    folder: str | Path,
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Saves a model in the Hugging Face layout, for transformers and all that read its folders.

    Everything is written beside the folder first. A new folder then appears at once and whole; in
    an existing one file after file is replaced, config.json last, so that no file is ever damaged.

    Args:
      folder: where to; made where it is not.
      config: of the transformer.
      params: of the transformer, stored in the types they have.
      tokenizer: saved beside it, as it was loaded. None leaves a tokenizer that is there.
      max_shard_size: bytes of tensors a file; more are split over files with an index.

    Raises:
      ValueError: if no family has such a config (the field is named), the parameters do not fit it
        or have adapters, or the tokenizer has more tokens than the model.
      ImportError: without the packages of the extra "pretrained".
    """
    safetensors()
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora'): merge them into the weights "
            "first, or save them apart in the PEFT layout"
        )
    if set(params) != {"params"}:
        raise ValueError(f"expected parameters {{'params': ...}}, found the keys {list(params)}")
    target = Path(folder).expanduser().resolve()
    _check_vocabulary(tokenizer, config, target)
    dtype = str(params["params"]["token_embedding"]["embedding"].dtype)
    settings, generation = write_config(config, dtype)
    family = FAMILIES[family_of(config)]

    staging = target.parent / f".{target.name}.saving-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)  # a killed process with the same id left it
    staging.mkdir(parents=True)
    try:
        write_weights(staging, config, family, params, max_shard_size=max_shard_size)
        _write_json(staging / "config.json", settings)
        _write_json(staging / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(staging)
        _move(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _find(folder: str | Path) -> Path:
    """The folder itself, or that of a hub name, downloaded."""
    path, name = Path(folder).expanduser(), str(folder)
    if path.is_dir():
        return path
    if isinstance(folder, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(
            f"there is no folder {path}: expected one with config.json, {WEIGHTS} and "
            "tokenizer.json, or a name on the Hugging Face hub, org/name"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"there is no folder {name}; to fetch the model {name} from the Hugging Face hub: "
            "pip install 'shatter[hub]'; or pass a folder"
        ) from error
    patterns = [*_HUB_FILES, *TOKENIZER_FILES]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"there is no folder {name}, and no model {name} could be fetched from the Hugging "
            f"Face hub ({type(error).__name__}: {reason}): without network, pass a folder that "
            f"`hf download {name} --local-dir FOLDER` made elsewhere"
        ) from error


def _check_vocabulary(tokenizer: Tokenizer | None, config: TransformerConfig, path: Path) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding "
            f"{config.vocab_size}; expected no more tokens than the model has: is it another "
            "model's tokenizer, or were tokens added without resizing the embedding?"
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _move(staging: Path, target: Path) -> None:
    """Puts the files of a finished folder into place and removes those that they replace."""
    if not target.exists():
        os.rename(staging, target)
        return
    new = {file.name for file in staging.iterdir()}
    weights = sorted(name for name in new if _WEIGHT_FILES.fullmatch(name))  # the index is last
    others = sorted(new - {*weights, "config.json"})
    if INDEX in new:  # no index stands while there may be shards of two models
        (target / INDEX).unlink(missing_ok=True)
    for name in weights:
        os.replace(staging / name, target / name)
    for file in sorted(target.iterdir()):  # an old index goes after the old whole file
        old_tokenizer = "tokenizer.json" in new and file.name in TOKENIZER_FILES
        if file.name not in new and (old_tokenizer or _WEIGHT_FILES.fullmatch(file.name)):
            file.unlink()
    for name in (*others, "config.json"):
        os.replace(staging / name, target / name)
