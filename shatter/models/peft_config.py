"""adapter_config.json of PEFT: what is read of it, and what is refused."""

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
    # Those below say nothing of what the adapters compute.
    "base_model_name_or_path": _TEXT,
    "revision": _TEXT,
    "inference_mode": _FLAG,
    "lora_dropout": Field("number", 0.0, 1.0, optional=True),
    "fan_in_fan_out": _FLAG,  # PEFT corrects it by the module; matrices are stored alike
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
    # Other ways to begin change the base as well.
    "init_lora_weights": (True, False, None, "gaussian", "eva"),
}
"""Fields that must be one of few values; an absent one is None."""
_MODULES = ("target_modules", "exclude_modules")


class PeftConfig(NamedTuple):
    """What is read of an adapter_config.json.

    Attributes:
      rank: of the adapters.
      alpha: of the adapters.
      use_rslora: as in `LoraConfig`.
      base: name of the base, if any.
      target_modules: names of modules, or what PEFT writes instead.
      exclude_modules: the same.
    """

    rank: int
    alpha: float
    use_rslora: bool
    base: str | None
    target_modules: Any
    exclude_modules: Any


def read_peft_config(settings: Mapping[str, Any]) -> PeftConfig:
    """Reads an adapter_config.json of plain low-rank adapters.

    Args:
      settings: of adapter_config.json.

    Returns:
      What is used of it.

    Raises:
      ValueError: if a field is missing, of another type or out of its range, or asks for what our
        adapters do not compute: DoRA, other ranks for some layers, biases, ... A field that is not
        known may hold nothing but null, false or an empty list or object.
    """
    for name, allowed in _CHOICES.items():
        found = settings.get(name)
        if not any(found is value or (found == value and _is_text(found)) for value in allowed):
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, allowed))}, found {shown(found)}: "
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
                f"{name} is {shown(value)}, which is not supported; expected null, false or nothing"
                " in it"
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
    """Makes an adapter_config.json.

    Args:
      lora: of the adapters.
      target_modules: names of modules in transformers, without their block.
      fan_in_fan_out: whether those modules store their weights [in, out].
      base: folder of the base, or its name on the hub.
      revision: of a name on the hub.

    Returns:
      The settings.

    Raises:
      ValueError: if there is a revision without a name on the hub.
    """
    folder = None if base is None else Path(base).expanduser()
    if revision is not None and (folder is None or folder.is_dir()):
        raise ValueError(
            f"a revision is of a name on the Hugging Face hub, found {revision!r} and the base "
            f"{base!r}: leave it out, or pass the name"
        )
    if folder is not None:  # a folder's whole path, which holds wherever the reader stands
        base = str(folder.resolve() if folder.is_dir() else base)
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
    """Refuses files whose tensors are not those of the modules that the config names.

    PEFT passes over tensors of a module that the config does not name, and leaves a module that it
    names without tensors as it is. A pattern or "all-linear" is not compared.

    Args:
      settings: of adapter_config.json.
      modules: the names of a target's modules in transformers, by target.
      targets: that the file has tensors of.
      file: of the tensors.

    Raises:
      ValueError: if the file has tensors of no target, or not of those that the config names.
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
    """Whether a list of PEFT has a module: by its whole name, or by the end of it."""
    parts = module.split(".")
    return not {".".join(parts[i:]) for i in range(len(parts))}.isdisjoint(names)
