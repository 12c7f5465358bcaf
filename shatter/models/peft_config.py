"""Reads and writes adapter_config.json, the settings of adapters in the PEFT layout."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shatter.models.fields import FLAG, SIZE, Field, check_fields, shown
from shatter.models.lora import FIELDS as LORA_FIELDS
from shatter.models.lora import LoraConfig

_FLAG, _TEXT = FLAG._replace(optional=True), Field("text", optional=True)
_FIELDS = {
    "r": SIZE,
    "lora_alpha": LORA_FIELDS["alpha"],
    "use_rslora": _FLAG,
    # The fields below do not change what the adapters compute.
    "base_model_name_or_path": _TEXT,
    "revision": _TEXT,
    "inference_mode": _FLAG,
    "lora_dropout": Field("number", 0.0, 1.0, optional=True),
    "fan_in_fan_out": _FLAG,  # PEFT itself corrects it; matrices are stored alike
    "auto_mapping": Field("object", optional=True),
    "peft_version": _TEXT,
    "megatron_core": _TEXT,
    "eva_config": Field("object", optional=True),
    "qalora_group_size": Field("integer", optional=True),
}
_CHOICES = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    # Other initialisations change the weights of the base too.
    "init_lora_weights": (True, False, None, "gaussian", "eva"),
}
"""Fields that allow a few values only; an absent field is None."""
_MODULES = ("target_modules", "exclude_modules")


class PeftConfig(NamedTuple):
    """The settings that are read from an adapter_config.json.

    Attributes:
      rank: `LoraConfig.rank`.
      alpha: `LoraConfig.alpha`.
      use_rslora: `LoraConfig.use_rslora`.
      base: the name of the base, if there is one.
      target_modules: a list of module names, or a pattern.
      exclude_modules: the same, of modules without adapters.
    """

    rank: int
    alpha: float
    use_rslora: bool
    base: str | None
    target_modules: Any
    exclude_modules: Any


def read_peft_config(settings: Mapping[str, Any]) -> PeftConfig:
    """Reads the settings of plain low-rank adapters.

    Args:
      settings: the content of adapter_config.json.

    Returns:
      The settings that are used.

    Raises:
      ValueError: if a field is missing, has another type, is out of its range, or asks for what
        our adapters do not compute (DoRA, different ranks, biases, ...). A field that is unknown
        must be null, false or empty.
    """
    for name, allowed in _CHOICES.items():
        value = settings.get(name)
        # `is` for true and false, because 1 == True.
        if not any(value is one or (value == one and _is_text(value)) for one in allowed):
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, allowed))}, found {shown(value)}: "
                "not supported"
            )
    for name in ("r", "lora_alpha"):
        if name not in settings:
            raise ValueError(f"{name} is missing")
    check_fields(settings, _FIELDS)
    for name in _MODULES:
        if not _is_text(settings.get(name)):
            check_fields(settings, {name: Field("texts", optional=True)})
    for name, value in settings.items():
        is_known = name in _FIELDS or name in _CHOICES or name in _MODULES
        if not is_known and value is not None and value is not False and value not in ([], {}):
            raise ValueError(
                f"{name} is {shown(value)}, which is not supported; expected null, false or an "
                "empty list or object"
            )
    return PeftConfig(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        use_rslora=bool(settings.get("use_rslora")),
        base=settings.get("base_model_name_or_path"),
        target_modules=settings.get("target_modules"),
        exclude_modules=settings.get("exclude_modules"),
    )


def write_peft_config(
    lora: LoraConfig,
    *,
    target_modules: list[str],
    fan_in_fan_out: bool,
    base: str | Path | None,
    revision: str | None,
) -> dict[str, Any]:
    """Returns the content of an adapter_config.json.

    Args:
      lora: the configuration of the adapters.
      target_modules: names of modules in transformers, without their block.
      fan_in_fan_out: whether those modules store their weights as [in, out].
      base: the base's folder, or its name on the hub.
      revision: commit, branch or tag of a base on the hub.

    Returns:
      The settings.

    Raises:
      ValueError: if a revision is given without a name on the hub.
    """
    folder = None if base is None else Path(base).expanduser()
    if revision is not None and (folder is None or folder.exists()):
        raise ValueError(
            f"a revision needs a base by its name on the Hugging Face hub, found {revision!r} and "
            f"the base {base!r}: leave the revision out, or pass the name"
        )
    if folder is not None:  # an absolute path, which is valid in any working directory
        base = str(folder.resolve() if folder.exists() else base)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.use_rslora,
        "target_modules": target_modules,
        "fan_in_fan_out": fan_in_fan_out,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def check_targets(
    settings: PeftConfig,
    modules: Mapping[str, Collection[str]],
    targets: Collection[str],
    file: Path,
) -> None:
    """Raises ValueError if a file has adapters of other modules than adapter_config.json names.

    PEFT would ignore adapters of modules that are not named, and leave a named module without
    adapters unchanged. Patterns and "all-linear" are not compared.

    Args:
      settings: the settings of adapter_config.json.
      modules: the names of the modules in transformers, by target.
      targets: the targets of which the file has adapters.
      file: the file of the adapters.

    Raises:
      ValueError: if the file has adapters of no target, or of others than those that are named.
    """
    if not targets:
        raise ValueError(
            f"{file} has no adapter of this model; adapter_config.json names the modules "
            f"{settings.target_modules!r} of {settings.base!r}"
        )
    names, excluded = settings.target_modules, settings.exclude_modules or []
    if names is None or _is_text(names) or _is_text(excluded):
        return
    named = {
        target
        for target, own in modules.items()
        if any(_is_named(module, names) and not _is_named(module, excluded) for module in own)
    }
    for target in sorted(named.symmetric_difference(targets)):
        has, other = ("no", "names it") if target in named else ("a", "does not name it")
        raise ValueError(
            f"{file} has {has} tensor of {next(iter(modules[target]))!r}, but target_modules "
            f"{shown(list(names))} of adapter_config.json {other}"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_named(module: str, names: Collection[str]) -> bool:
    """Returns whether PEFT's list of names has a module, by its whole name or by the end of it."""
    parts = module.split(".")
    return not {".".join(parts[i:]) for i in range(len(parts))}.isdisjoint(names)
