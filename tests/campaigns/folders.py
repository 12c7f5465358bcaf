"""Damages, loads and runs one model folder; `tests.campaigns.worker` calls it in a process."""

import base64
import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shatter import models
from tests.campaigns.tally import kind_of

REFUSALS = (ValueError, FileNotFoundError)


def attempt(case: dict[str, Any]) -> str | None:
    """Loads a damaged copy of a model folder.

    Args:
      case: `folder`, which is copied; `file`, which is damaged; and either `content`, its new bytes
        in base64, or `field` and its new `value`, or `field` alone, which is removed. `dtype` is
        the type of the parameters. With `must_refuse` it is a fault if the folder loads.

    Returns:
      None if the error names the field or file, or the logits are finite; else what went wrong.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(case["folder"], folder)
        _damage(folder / case["file"], case)
        try:
            loaded = _load(folder, case)
        except REFUSALS as error:
            known = (case.get("field") or case["file"], *_names(folder))
            named = any(name in str(error) for name in known)
            return None if named else "the error names neither field nor file"
        except Exception as error:
            return kind_of(error)
        if case.get("must_refuse"):
            return "a folder that must be refused is accepted"
        return loaded


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _damage(file: Path, case: dict[str, Any]) -> None:
    if "content" in case:
        file.write_bytes(base64.b64decode(case["content"]))
        return
    settings = json.loads(file.read_text()) if file.exists() else {}
    settings.pop(case["field"], None)
    if "value" in case:
        settings[case["field"]] = case["value"]
    file.write_text(json.dumps(settings))


def _load(folder: Path, case: dict[str, Any]) -> str | None:
    if case["file"].startswith("adapter"):
        config, params, _ = models.load_pretrained(case["base"], dtype="float32")
        adapters, lora = models.load_lora(folder, config)
        merged = models.merge_lora(params, adapters, lora)
        return _fault_of_logits(config, merged)
    config, params, tokenizer = models.load_pretrained(folder, dtype=case.get("dtype"))
    if tokenizer is not None:
        ids = tokenizer.encode("ab <s> \U0001f600")
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        if tokenizer.chat_template is not None:
            tokenizer.render_chat([{"role": "user", "content": "ab"}])
        tokenizer.fingerprint()
    if case["file"] not in ("config.json", "generation_config.json") and "safe" not in case["file"]:
        return None  # the file does not change the model
    return _fault_of_logits(config, params)


def _fault_of_logits(config: models.TransformerConfig, params: Any) -> str | None:
    apply = _compiled(dataclasses.replace(config, bos=None, eos=()))
    logits = apply(params, jnp.asarray([[0, 1, 1]]))
    return None if np.isfinite(logits).all() else "it loads, and its logits are not finite"


@functools.cache
def _compiled(config: models.TransformerConfig) -> Any:
    return jax.jit(models.transformer(config).apply)
