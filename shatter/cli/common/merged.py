"""Model folders, and folders of adapters merged into their base."""

import json
from pathlib import Path
from typing import NamedTuple

from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.types import Params


class Merged(NamedTuple):
    """A pretrained model whose adapters, if it had any, are merged into its parameters.

    Attributes:
      config: of the transformer.
      params: its parameters.
      tokenizer: its tokenizer; None = the folder has none.
      folder: the folder whose generation settings hold.
    """

    config: models.TransformerConfig
    params: Params
    tokenizer: models.Tokenizer | None
    folder: Path


def load_merged(
    name: str, *, revision: str | None = None, base: str = "", dtype: str | None = None
) -> Merged:
    """Opens a model folder, or a folder of adapters with its base.

    Args:
      name: the value of `--model_name_or_path`.
      revision: the branch, tag or commit of a model on the hub.
      base: the value of `--base_model`, the base of adapters; "" = the one that their
        adapter_config.json names.
      dtype: the type of the parameters; None = as they are stored.

    Returns:
      The model.

    Raises:
      UsageError: if a folder cannot be opened, or adapters name no base.
    """
    settings = Path(name).expanduser() / "adapter_config.json"
    is_adapters = settings.is_file() and not settings.with_name("config.json").exists()
    if base and not is_adapters:
        raise UsageError(
            f"--base_model belongs to a folder of adapters, but {name} has no adapter_config.json: "
            "leave the flag out"
        )
    try:
        if not is_adapters:
            config, params, tokenizer = models.load_pretrained(name, dtype=dtype, revision=revision)
            folder, _ = models.find_pretrained(name, revision=revision)
            return Merged(config, params, tokenizer, folder)
        base, revision = _base_of(settings, base)
        config, params, tokenizer = models.load_pretrained(base, dtype=dtype, revision=revision)
        adapters, lora = models.load_lora(name, config)
        own = models.load_tokenizer(name)
        params = models.merge_lora(params, adapters, lora)
        return Merged(config, params, own or tokenizer, settings.parent)
    except (OSError, ImportError, ValueError) as error:
        at = "" if revision is None else f" --model_revision={revision}"
        raise UsageError(f"--model_name_or_path={name}{at}: {error}") from error


def _base_of(settings: Path, base: str) -> tuple[str, str | None]:
    """Returns the base of adapters and its revision, as a flag or adapter_config.json names it."""
    if base:
        return base, None
    found = json.loads(settings.read_text(encoding="utf-8"))
    base, revision = found.get("base_model_name_or_path"), found.get("revision")
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{settings}: base_model_name_or_path: expected the model that the adapters were "
            f"trained on, found {base!r}: pass it as --base_model=FOLDER"
        )
    return base, revision if isinstance(revision, str) else None
