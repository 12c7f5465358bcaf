"""Model folders, adapters and templates with absurd fields and damaged bytes.

Each is either refused by the name of the field or file, or works. None raises another exception,
takes long, or takes much memory.
"""

import base64
import json
import shutil
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from shatter import models
from tests.campaigns.tally import Tally
from tests.campaigns.worker import try_apart
from tests.strategies import SIZE, absurd_settings

ATTEMPT = ("tests.campaigns.folders", "attempt")
SPARE = 24  # the default run tries one case in so many; a larger size tries more of them

Case = dict[str, Any]
"""A case of `tests.campaigns.folders.attempt`."""


def settle(tally: Tally, cases: list[Case]) -> None:
    for case, fault in zip(cases, try_apart(*ATTEMPT, cases), strict=True):
        shown = {k: v for k, v in case.items() if k not in ("folder", "base", "content")}
        tally.add(shown, fault)
    tally.settle()


def fields_of(folder: Path, file: str, more: dict[str, Any], **about: Any) -> list[Case]:
    """Returns cases for every field of a JSON file, and for fields that it might have."""
    found = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    return [
        {"folder": str(folder), "file": file, "field": name, **about}
        | ({} if value is ... else {"value": value})
        for name, value in absurd_settings(found | more)
    ]


MIGHT = {
    "head_dim": 4,
    "rope_theta": 1e4,
    "rope_scaling": {},
    "rope_parameters": {},
    "partial_rotary_factor": 1.0,
    "attention_bias": False,
    "mlp_bias": False,
    "layer_types": [],
    "quantization_config": {},
    "sliding_window": 4,
    "use_sliding_window": False,
    "torch_dtype": "float32",
}


def fields_of_configs(model: Path, adapters: Path) -> list[Case]:
    """Returns cases of config.json and generation_config.json, and of scaled rotary positions."""
    cases = fields_of(model, "config.json", MIGHT)
    cases += fields_of(model, "generation_config.json", {"eos_token_id": 2})
    for kind in ("linear", "dynamic", "yarn", "llama3", "longrope", "nonsense"):
        whole = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 8}
        whole |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        for name in whole:
            for value in (None, 0, -1, "2", float("nan"), float("inf"), [], 1e30):
                about = {"file": "config.json", "field": "rope_scaling"}
                cases.append({"folder": str(model), **about, "value": whole | {name: value}})
    return cases


def fields_of_tokenizers(model: Path, adapters: Path) -> list[Case]:
    """Returns cases of tokenizer_config.json, special_tokens_map.json and tokenizer.json."""
    special = {f"{role}_token": "<s>" for role in ("bos", "eos", "pad", "unk")}
    cases = fields_of(model, "tokenizer_config.json", special | {"added_tokens_decoder": {}})
    cases += fields_of(model, "special_tokens_map.json", special)
    cases += fields_of(model, "tokenizer.json", {})
    return cases


CHANGES_THE_MEANING = {
    "use_dora": True,
    "bias": "all",
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [0],
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4},
    "layer_replication": [[0, 1], [0, 1]],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [1],
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 2},
}
"""Fields of PEFT that our adapters do not support, with values that change their output."""


def fields_of_adapters(model: Path, adapters: Path) -> list[Case]:
    """Returns cases of adapter_config.json; the first ones change what the adapters compute."""
    about = {"folder": str(adapters), "file": "adapter_config.json"}
    about |= {"base": str(model), "must_refuse": True}
    cases = [{**about, "field": k, "value": v} for k, v in CHANGES_THE_MEANING.items()]
    values = fields_of(adapters, "adapter_config.json", {}, base=str(model))
    return cases + values


# --- bytes ----------------------------------------------------------------------------------------


def packed(header: Any, body: bytes, length: int | None = None) -> bytes:
    """Returns the content of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def damaged_weights(file: Path, seed: int) -> list[tuple[str, bytes, bool]]:
    """Returns the name, the content and whether it must be refused of damaged files of weights."""
    rng = np.random.default_rng(seed)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    first = next(name for name in header if name != "__metadata__")
    found: list[tuple[str, bytes, bool]] = []
    cuts = (0, 1, 7, 8, 9, 8 + length // 2, 8 + length, len(whole) // 2, len(whole) - 1)
    found += [(f"cut at {n}", whole[:n], True) for n in cuts]
    found += [("one byte more", whole + b"\0", True)]
    for n in rng.integers(0, 8 + length, 60):
        flipped = bytearray(whole)
        flipped[n] ^= 1 << int(rng.integers(8))
        found.append((f"flip in the header at {n}", bytes(flipped), False))
    changes: list[dict[str, Any]] = [
        {"dtype": kind} for kind in ("I32", "I64", "U8", "BOOL", "F8_E4M3", "F64", "XX", None, 3)
    ]
    shapes = ([], [0], [-1, 8], [2**62, 4], "8", None, [8, 12], [96], [1.5])
    changes += [{"shape": shape} for shape in shapes]
    offsets = ([0, 0], [-8, 8], [0, 2**62], [4, 0], None, ["0", "8"], [1, 2, 3])
    changes += [{"data_offsets": some} for some in offsets]
    for change in changes:
        new = {**header, first: {**header[first], **change}}
        found.append((f"{change}", packed(new, body), True))
    others: list[Any] = [b"[]", b"null", b"{}", b"{", b"[" * 10_000, b"\xff" * 8]
    found += [(f"header {some[:8]!r}", packed(some, body), True) for some in others]
    found += [(f"length {n}", packed(header, body, n), True) for n in (0, 2**31, 2**63, 2**64 - 1)]
    renamed = {("x" + name if name == first else name): about for name, about in header.items()}
    found.append(("renamed", packed(renamed, body), True))
    numbers = np.frombuffer(body, np.float32)
    for value in (np.nan, np.inf, -np.inf):
        for at in (0, len(numbers) - 1):
            changed = numbers.copy()
            changed[at] = value
            found.append((f"{value} at {at}", packed(header, changed.tobytes()), True))
    return found


def bytes_of_weights(model: Path, adapters: Path) -> list[Case]:
    """Returns cases of the weights of model and adapters; the model is also read as float32."""
    cases = []
    for folder, file in (
        (model, "model.safetensors"),
        (adapters, "adapter_model.safetensors"),
    ):
        for name, content, must_refuse in damaged_weights(folder / file, 1):
            about = {"folder": str(folder), "base": str(model), "file": file, "what": name}
            about |= {"content": base64.b64encode(content).decode(), "must_refuse": must_refuse}
            kinds = (None, "float32") if folder == model else (None,)
            cases += [{**about, "dtype": kind} for kind in kinds]
    return cases


def bytes_of_other_files(model: Path, adapters: Path) -> list[Case]:
    """Returns cases in which a JSON file is cut, emptied, or another kind of value."""
    cases = []
    files = [(model, path.name) for path in model.glob("*.json")]
    for folder, file in [*files, (adapters, "adapter_config.json")]:
        whole = (folder / file).read_bytes()
        for content in (b"", whole[: len(whole) // 2], whole[:-3], b"null", b"[]", b"3", b'"a"'):
            cases.append((folder, file, content))
        for content in (b"\xff\xfe" + whole, b"[" * 100_000, b"{}", bytes(256), b'{"a": 1' * 9):
            cases.append((folder, file, content))
    return [
        {"folder": str(folder), "base": str(model), "file": file}
        | {"content": base64.b64encode(content).decode(), "what": f"{content[:20]!r}"}
        for folder, file, content in sorted(cases)
    ]


@pytest.fixture(scope="module")
def adapter_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    config, params, _ = models.load_pretrained(model_folder)
    lora = models.LoraConfig(2, 4.0, ("query", "mlp_out"))
    models.save_lora(folder, config, models.init_lora(jax.random.key(0), params, lora), lora)
    return folder


KINDS: dict[str, Callable[[Path, Path], list[Case]]] = {
    "fields of configs": fields_of_configs,
    "fields of tokenizers": fields_of_tokenizers,
    "fields of adapters": fields_of_adapters,
    "bytes of weights": bytes_of_weights,
    "bytes of other files": bytes_of_other_files,
}


@pytest.mark.slow
def test_some_damaged_folders(model_folder: Path, adapter_folder: Path, tally: Tally):
    """Tries a few cases of each kind, in one process."""
    cases = [
        make(model_folder, adapter_folder)[:: max(1, SPARE // SIZE)] for make in KINDS.values()
    ]
    settle(tally, list(chain(*cases)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_damaged_folders(model_folder: Path, adapter_folder: Path, tally: Tally, kind: str):
    settle(tally, KINDS[kind](model_folder, adapter_folder))


def test_indices_of_shards(model_folder: Path, tmp_path: Path, tally: Tally):
    """An index may name the files of its folder, and nothing else."""
    folder = tmp_path / "sharded"
    config, params, tokenizer = models.load_pretrained(model_folder)
    models.save_pretrained(folder, config, params, tokenizer, max_shard_size=500)
    (tmp_path / "outside").mkdir()
    name = "model.safetensors.index.json"
    whole = json.loads((folder / name).read_text())
    first, shard = next(iter(whole["weight_map"].items()))
    shutil.copy(folder / shard, tmp_path / "outside" / shard)
    values: list[Any] = [None, 3, [], {}, "", ".", "/", "..", "config.json", "none.safetensors"]
    values += [f"../outside/{shard}", str(tmp_path / "outside" / shard), f"./../sharded/{shard}"]
    values += ["a\0b", "x" * 5000]
    about = {"folder": str(folder), "file": name, "field": "weight_map", "must_refuse": True}
    cases = [{**about, "value": whole["weight_map"] | {first: value}} for value in values]
    cases += [{**about, "value": value} for value in (None, [], 3, "a", {})]
    cases += [{k: v for k, v in about.items() if k != "value"}]
    settle(tally, cases)


QUICK = (
    "{{ 1 / 0 }}",
    "{{ messages[0].content[9] }}{{ messages[7].role }}",
    "{{ messages | map(attribute='none.of.it') | list }}",
    "{{ {}['a']['b'] }}",
    "{{ 'a' + 1 }}",
    "{{ 'a' | int(base=99) }}",
    "{{ messages | tojson(indent='a') }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now(3) }}",
    "{{ strftime_now('%') * 10 ** 8 }}",
    "{{ none_of_it() }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__['os'].system('true') }}",
    "{% include 'other' %}",
    "{% extends 'other' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{" * 10_000,
    "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "{% if " + "not " * 5000 + "1 %}{% endif %}",
    "{% generation %}",
    "{{ 'half \ud83d emoji' }}",
)
LONG = (
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' * 10 ** 8 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%0999999999d' % 3 }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ (range(99999) | list) * 99999 }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
)
"""Templates with which a careless renderer would run for minutes, or out of memory."""


@pytest.mark.parametrize(
    "templates",
    [pytest.param(QUICK, id="quick"), pytest.param(LONG, marks=pytest.mark.slow, id="long")],
)
def test_templates(model_folder: Path, tally: Tally, templates: tuple[str, ...]):
    """A template that fails, never ends or makes a huge text gives an error that says so."""
    about = {"folder": str(model_folder), "file": "tokenizer_config.json", "field": "chat_template"}
    cases: list[dict[str, Any]] = [{**about, "value": template} for template in templates]
    faults = try_apart("tests.campaigns.templates", "attempt", cases, seconds=15)
    for case, fault in zip(cases, faults, strict=True):
        tally.add(case["value"][:100], fault)
    tally.settle()
