"""Loads pretrained models from Hugging Face folders and GGUF files, and saves such folders."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from shatter.models.families import FAMILIES, Family, family_of
from shatter.models.fields import Field, check_fields
from shatter.models.gguf_config import read_settings
from shatter.models.gguf_family import gguf_family
from shatter.models.gguf_header import read_header
from shatter.models.gguf_tokenizer import read_tokenizer
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
    """Loads a model of the GPT-2, Llama (2, 3), Qwen (2, 2.5, 3) or Gemma 3 family.

    The weights are memory-mapped and read one tensor at a time. Every tensor is checked: its name
    and shape, that it holds floats, and that none of them is NaN or infinite. Of a Gemma 3 model
    that also reads images, the part that reads text is loaded.

    Example:
      >>> import tempfile
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from shatter import models
      >>> config = models.TransformerConfig(
      ...     vocab_size=16, max_length=8, width=8, tied=True, head_bias=False
      ... )
      >>> params = jax.jit(models.transformer(config).init)(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     models.save_pretrained(folder, config, params)
      ...     config, params, tokenizer = models.load_pretrained(folder)
      >>> lm = models.transformer(config)
      >>> jax.jit(lm.apply)(params, jnp.array([[3, 1, 4]])).shape
      (1, 3, 16)

    Args:
      folder: the folder with config.json, model.safetensors (or several files of weights and
        model.safetensors.index.json) and tokenizer.json; or a GGUF file, which holds all of them;
        or a name on the Hugging Face hub, "org/name".
      dtype: the type of the parameters, such as "float32" or "bfloat16". None = as stored, and
        float32 where a GGUF file holds quantised numbers.
      revision: commit, branch or tag of a model on the hub. None = its main branch.

    Returns:
      `(config, params, tokenizer)`; `transformer(config).apply(params, tokens)` computes the
      logits. The tokenizer is None if there is no tokenizer.json, or none in the GGUF file.

    Raises:
      FileNotFoundError: if the folder or one of its files is missing, or the hub cannot be reached.
      ValueError: if the family or a setting is not supported; a field of config.json or
        generation_config.json has another type or is out of its range; a tensor is missing,
        unexpected, not finite or not of floats, or has another shape; the tokenizer has more tokens
        than the model; a revision is given for a folder or a file; or a GGUF file is damaged, or
        has an architecture, a tokenizer or a type of numbers that is unknown.
      ImportError: if the packages of the extra "pretrained" are missing, or for a GGUF file those
        of the extra "gguf".
    """
    path, _ = find_pretrained(folder, revision=revision)
    config, family, tokenizer = (_open_gguf if path.is_file() else _open_folder)(path)
    _check_vocabulary(tokenizer, config, path)
    params = read_weights(path, config, family, dtype)
    return config, params, tokenizer


def _open_folder(path: Path) -> tuple[TransformerConfig, Family, Tokenizer | None]:
    """Reads all of a folder but the weights."""
    safetensors()
    if not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        raise FileNotFoundError(
            f"{path} has no config.json but GGUF files: pass one, as {files[0]}"
        )
    settings = read_json(existing(path / "config.json"))
    generation = _read_generation(path)
    try:
        config = read_config(settings, generation)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from error
    return config, FAMILIES[settings["model_type"]], load_tokenizer(path)


def _open_gguf(path: Path) -> tuple[TransformerConfig, Family, Tokenizer | None]:
    """Reads all of a GGUF file but the weights."""
    header = read_header(path)
    try:
        settings = read_settings(header)
        config = read_config(settings, {})
        tokenizer = read_tokenizer(header, config.vocab_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, gguf_family(header.settings["general.architecture"]), tokenizer


def save_pretrained(
    folder: str | Path,
    config: TransformerConfig,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_size: int = 5_000_000_000,
    like: str | Path | None = None,
) -> None:
    """Saves a model in the Hugging Face layout, which transformers and many other programs read.

    The files are first written to a temporary folder beside the target. A new folder then appears
    complete; in an existing one the files are replaced one by one, config.json last, and none of
    them is ever half written. Both config.json and generation_config.json list all `end_tokens`.

    Args:
      folder: the folder to write to, made if it is missing.
      config: the configuration of the transformer.
      params: its parameters; they keep their types.
      tokenizer: the tokenizer, saved as it was loaded. None leaves the folder's as it is.
      max_shard_size: the largest size of a file of weights, in bytes; a larger model is split into
        several files with an index.
      like: the folder that the model came from, whose other generation settings (temperature,
        repetition_penalty, ...) are saved too. None = no others.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if no family has such a configuration (the message names the field), the
        parameters do not fit it, have adapters or are not finite, or the tokenizer has more tokens
        than the model.
      ImportError: if the packages of the extra "pretrained" are missing.
    """
    safetensors()
    if "lora" in params:
        raise ValueError(
            "the parameters have adapters (the collection 'lora'): merge them into the weights by "
            "merge_lora first, or save the adapters alone by save_lora"
        )
    if set(params) != {"params"}:
        raise ValueError(f"expected parameters {{'params': ...}}, found the keys {list(params)}")
    check_fields({"max_shard_size": max_shard_size}, {"max_shard_size": Field("integer", 1)})
    _check_vocabulary(tokenizer, config, Path(folder))
    dtype = str(params["params"]["token_embedding"]["embedding"].dtype)
    ends = end_tokens(config, tokenizer)
    settings, _ = write_config(dataclasses.replace(config, eos=ends), dtype)
    generation = generation_settings(config, tokenizer, like)
    with staged(folder, config="config.json") as staging:
        family = FAMILIES[family_of(config)]
        write_weights(staging, config, family, params, max_shard_size=max_shard_size)
        write_json(staging / "config.json", settings)
        write_json(staging / _GENERATION, generation)
        if tokenizer is not None:
            tokenizer.save(staging)


def find_pretrained(folder: str | Path, *, revision: str | None = None) -> tuple[Path, str | None]:
    """Returns the folder of a pretrained model, and downloads the model if it is on the hub.

    Args:
      folder: the model's folder, its GGUF file, or its name on the Hugging Face hub, "org/name".
      revision: commit, branch or tag of a model on the hub. None = its main branch.

    Returns:
      `(folder, commit)`: the folder, or the GGUF file; of a model on the hub the commit that the
      revision stands for, by which the same files can be found again, and None of any other.

    Raises:
      FileNotFoundError: if there is no such folder or file, or the hub cannot be reached.
      ValueError: if a revision is given for a folder or a file, or the file is one of a folder.
      ImportError: if the packages of the extra "hub" are missing.
    """
    path = _find(folder, revision)
    is_snapshot = path.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", path.name)
    return path, path.name if is_snapshot else None


def end_tokens(config: TransformerConfig, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Returns every token that ends a text: the tokenizer's and those of the configuration.

    The tokenizer's is the first, because training closes completions with it, sampling fills up
    with it what comes after the end, and programs that know of only one end token read the first.

    Args:
      config: the configuration of the transformer.
      tokenizer: the tokenizer of the model, if it has one.

    Returns:
      Different token ids; none if neither has one.
    """
    own = () if tokenizer is None or tokenizer.eos is None else (tokenizer.eos,)
    return tuple(dict.fromkeys((*own, *config.eos)))


def generation_settings(
    config: TransformerConfig, tokenizer: Tokenizer | None, like: str | Path | None
) -> dict[str, Any]:
    """Returns the content of a generation_config.json.

    Args:
      config: the configuration of the transformer.
      tokenizer: the tokenizer of the model, if it has one.
      like: the folder whose other settings are kept. None = no others.

    Returns:
      The settings, with the model's tokens that begin and end a text.

    Raises:
      FileNotFoundError: if there is no folder `like`.
      ValueError: if its generation_config.json cannot be read.
    """
    kept = {} if like is None else _read_generation(find_pretrained(like)[0])
    ends = end_tokens(config, tokenizer)
    if set(ends) == set(config.eos):
        ends = config.eos  # this file's own order stays if no token is added
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
    """Returns the folder or file, or the folder of the model that a hub name stands for."""
    path, name = Path(folder).expanduser(), str(folder)
    if path.is_dir() or path.is_file():
        if revision is not None:
            raise ValueError(
                f"{path} is a {'folder' if path.is_dir() else 'file'}, which has no revision, "
                f"found {revision!r}: leave it out, or pass the name of a model on the Hugging "
                "Face hub"
            )
        if path.suffix == ".safetensors":
            raise ValueError(f"{path} is a part of a model: pass its folder {path.parent}")
        return path
    if path.suffix == ".gguf":
        raise FileNotFoundError(f"there is no file {path}")
    if isinstance(folder, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(
            f"there is no folder {path}: expected one with config.json, {WEIGHTS} and "
            "tokenizer.json, a .gguf file, or a name on the Hugging Face hub, org/name"
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
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns
        )
        return Path(snapshot)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        at_revision = "" if revision is None else f" at the revision {revision!r}"
        raise FileNotFoundError(
            f"there is no folder {name}, and no model {name}{at_revision} could be fetched from "
            f"the Hugging Face hub ({type(error).__name__}: {reason}): without network, run "
            f"`hf download {name} --local-dir FOLDER` on another machine and pass the folder"
        ) from error


def _check_vocabulary(tokenizer: Tokenizer | None, config: TransformerConfig, path: Path) -> None:
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding "
            f"{config.vocab_size}; expected no more tokens than the model has: is it another "
            "model's tokenizer, or were tokens added without resizing the embedding?"
        )
