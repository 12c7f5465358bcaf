"""Folders of pretrained models in the Hugging Face layout: to parameters, and back."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from shatter.models.families import FAMILIES, family_of
from shatter.models.fields import Field, check_fields
from shatter.models.pretrained_config import check_generation, read_config, write_config
from shatter.models.pretrained_weights import read_weights, write_weights
from shatter.models.saving import staged, write_json
from shatter.models.tokenizer import FILES as TOKENIZER_FILES
from shatter.models.tokenizer import Tokenizer, load_tokenizer, read_json
from shatter.models.transformer_config import TransformerConfig
from shatter.models.weight_files import INDEX, WEIGHTS, existing, safetensors
from shatter.types import Params

_GENERATION = "generation_config.json"
_HUB_FILES = ("config.json", _GENERATION, "model*.safetensors", INDEX)


def load_pretrained(
    folder: str | Path, *, dtype: str | None = None, revision: str | None = None
) -> tuple[TransformerConfig, Params, Tokenizer | None]:
    """Loads a model of the GPT-2, Llama (2, 3) or Qwen (2, 2.5, 3) family.

    Files are memory-mapped and read tensor by tensor; the name and shape of every one is checked,
    and that it holds floats, none of them NaN or infinite.

    Args:
      folder: with config.json, model.safetensors (or shards and model.safetensors.index.json) and
        tokenizer.json; or a name on the Hugging Face hub, "org/name".
      dtype: of the parameters, such as "float32" or "bfloat16". None = as stored.
      revision: of a name on the hub: a commit, branch or tag. None = its main branch.

    Returns:
      `(config, params, tokenizer)`; `transformer(config).apply(params, tokens)` gives the logits.
      The tokenizer is None without a tokenizer.json.

    Raises:
      FileNotFoundError: if there is no such folder, it lacks a file, or the hub cannot be reached.
      ValueError: if the family or a setting is not supported, a field of config.json or
        generation_config.json is of another type or out of its range, a tensor is missing,
        unexpected, misshapen, not of floats or not finite, the tokenizer has more tokens than the
        model, or a folder is given a revision.
      ImportError: without the packages of the extra "pretrained".
    """
    safetensors()
    path, _ = find_pretrained(folder, revision=revision)
    settings = read_json(existing(path / "config.json"))
    generation = _read_generation(path)
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
    like: str | Path | None = None,
) -> None:
    """Saves a model in the Hugging Face layout, for transformers and all that read its folders.

    Everything is written beside the folder first. A new folder then appears at once and whole; in
    an existing one file after file is replaced, config.json last, so that no file is ever damaged.
    The tokens that end a text are those of the config, and the tokenizer's, with which training
    closes completions: config.json and generation_config.json have them all.

    Args:
      folder: where to; made where it is not.
      config: of the transformer.
      params: of the transformer, stored in the types they have.
      tokenizer: saved beside it, as it was loaded. None leaves a tokenizer that is there.
      max_shard_size: bytes of tensors a file; more are split over files with an index.
      like: the folder that the model came from, whose other generation settings (temperature,
        repetition_penalty, ...) are kept. None keeps none.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if no family has such a config (the field is named), the parameters do not fit it,
        have adapters or are not finite, or the tokenizer has more tokens than the model.
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
    check_fields({"max_shard_size": max_shard_size}, {"max_shard_size": Field("integer", 1)})
    _check_vocabulary(tokenizer, config, Path(folder))
    dtype = str(params["params"]["token_embedding"]["embedding"].dtype)
    own = None if tokenizer is None else tokenizer.eos
    # The tokenizer's first: readers that know of one end token take the first.
    ends = sorted(end_tokens(config, tokenizer), key=lambda token: token != own)
    settings, _ = write_config(dataclasses.replace(config, eos=tuple(ends)), dtype)
    generation = generation_settings(config, tokenizer, like)
    with staged(folder, config="config.json") as staging:
        family = FAMILIES[family_of(config)]
        write_weights(staging, config, family, params, max_shard_size=max_shard_size)
        write_json(staging / "config.json", settings)
        write_json(staging / _GENERATION, generation)
        if tokenizer is not None:
            tokenizer.save(staging)


def find_pretrained(folder: str | Path, *, revision: str | None = None) -> tuple[Path, str | None]:
    """Finds the folder of a pretrained model; one of the hub is downloaded.

    Args:
      folder: of a model, or a name on the Hugging Face hub, "org/name".
      revision: of a name on the hub: a commit, branch or tag. None = its main branch.

    Returns:
      `(folder, commit)`: the folder, and of a model of the hub the commit that the revision stands
      for, which pins it for good. None of any other folder.

    Raises:
      FileNotFoundError: if there is no such folder, or the hub cannot be reached.
      ValueError: if a folder is given a revision.
      ImportError: without the packages of the extra "hub".
    """
    path = _find(folder, revision)
    is_snapshot = path.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", path.name)
    return path, path.name if is_snapshot else None


def end_tokens(config: TransformerConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The tokens that end a text: those of the config, and the tokenizer's.

    Args:
      config: of the transformer.
      tokenizer: of the model, if it has one.

    Returns:
      Token ids; the tokenizer's is first if the config lacks it.
    """
    own = None if tokenizer is None else tokenizer.eos
    return config.eos if own is None or own in config.eos else (own, *config.eos)


def generation_settings(
    config: TransformerConfig, tokenizer: Tokenizer | None, like: str | Path | None
) -> dict[str, Any]:
    """The settings of a generation_config.json.

    Args:
      config: of the transformer.
      tokenizer: of the model, if it has one.
      like: the folder whose settings hold besides. None = none.

    Returns:
      Its settings, with the tokens that begin and end a text in place of theirs.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if its generation_config.json cannot be read.
    """
    kept = {} if like is None else _read_generation(find_pretrained(like)[0])
    ends = end_tokens(config, tokenizer)
    own: dict[str, Any] = {
        "bos_token_id": config.bos,
        "eos_token_id": None if not ends else ends[0] if len(ends) == 1 else list(ends),
    }
    return kept | {name: ids for name, ids in own.items() if ids is not None or name in kept}


def _read_generation(folder: Path) -> dict[str, Any]:
    file = folder / _GENERATION
    if not file.is_file():
        return {}
    settings = read_json(existing(file))
    try:
        check_generation(settings)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return settings


def _find(folder: str | Path, revision: str | None) -> Path:
    """The folder itself, or that of a hub name, downloaded."""
    path, name = Path(folder).expanduser(), str(folder)
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"{path} is a folder, which has no revision, found {revision!r}: leave it out, or "
                "pass the name of a model on the Hugging Face hub"
            )
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
            "pip install 'shatter-lm[hub]'; or pass a folder"
        ) from error
    patterns = [*_HUB_FILES, *TOKENIZER_FILES]
    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        return Path(found)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        asked = "" if revision is None else f" at the revision {revision!r}"
        raise FileNotFoundError(
            f"there is no folder {name}, and no model {name}{asked} could be fetched from the "
            f"Hugging Face hub ({type(error).__name__}: {reason}): without network, pass a folder "
            f"that `hf download {name} --local-dir FOLDER` made elsewhere"
        ) from error


def _check_vocabulary(tokenizer: Tokenizer | None, config: TransformerConfig, path: Path) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding "
            f"{config.vocab_size}; expected no more tokens than the model has: is it another "
            "model's tokenizer, or were tokens added without resizing the embedding?"
        )
