"""Greedy generation by transformers from folders that we saved ends where ours ends."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.documents import response_mask, sample
from shatter.models import (
    LoraConfig,
    TransformerConfig,
    init_lora,
    load_tokenizer,
    merge_lora,
    save_lora,
    save_pretrained,
    transformer,
)
from tests.models.tiny import llama

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
peft = pytest.importorskip("peft", reason="parity with peft needs peft")
tokenizers = pytest.importorskip("tokenizers", reason="parity needs tokenizers")
# peft uses a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

VOCAB, NEW = 61, 24
CONFIG = llama(
    vocab_size=VOCAB,
    max_length=48,
    width=32,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    mlp_width=40,
    bos=1,
)
LORA = LoraConfig(rank=2, alpha=4.0, targets=("query", "value", "up"))
PROMPT = np.array([1, 9, 4])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_like(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.array(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
    return jax.tree.map(draw, tree)


@pytest.fixture(scope="module")
def base() -> Any:
    return random_like(jax.eval_shape(transformer(CONFIG).init, jax.random.key(0)), 0)


@pytest.fixture(scope="module")
def adapters(base: Any) -> Any:
    shapes = jax.eval_shape(partial(init_lora, lora=LORA), jax.random.key(0), base)
    return random_like(shapes, 10)  # a seed whose greedy text has ten different tokens


@partial(jax.jit, static_argnames="eos")
def ours(params: Any, eos: tuple[int, ...]) -> Any:
    """Returns the greedy response, and which of its tokens are text."""
    lm, key = transformer(CONFIG), jax.random.key(0)
    prompt = jnp.asarray(PROMPT)
    drawn = sample(lm, params, key, prompt, num_samples=1, max_length=NEW, top_k=1, eos=eos)
    mask = response_mask(drawn.tokens, prompt_length=len(PROMPT), eos=eos)
    return drawn.tokens[0, len(PROMPT) :], mask[0, len(PROMPT) :]


def text(params: Any, eos: tuple[int, ...] = ()) -> list[int]:
    tokens, mask = ours(params, eos)
    return np.asarray(tokens)[np.asarray(mask)].tolist()


def first_seen(params: Any) -> list[int]:
    """Returns the tokens of the endless continuation in the order of their first occurrence."""
    return list(dict.fromkeys(text(params)))


def tokenizer_that_ends_with(eos: int, folder: Path) -> Any:
    pieces = {f"w{i}": i for i in range(VOCAB)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="w0"))
    folder.mkdir()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="w1", eos_token=f"w{eos}", unk_token="w0"
    ).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None and tokenizer.eos == eos
    return tokenizer


def theirs(model: Any, **settings: Any) -> list[int]:
    found = model.eval().generate(
        input_ids=torch.tensor(PROMPT)[None],
        attention_mask=torch.ones(1, len(PROMPT), dtype=int),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=0,
        **settings,
    )
    return found[0, len(PROMPT) :].tolist()


ENDS = pytest.mark.parametrize(
    ("of_config", "of_tokenizer"),
    [((5,), None), ((7, 4), None), ((4,), 4), ((6, 3), 6), ((7,), 4), ((), 5), ((8, 9), 3)],
    ids=str,
)
"""The tokens of the continuation, by order, that end a text by the config and the tokenizer."""


def ends_of(
    params: Any, of_config: tuple[int, ...], of_tokenizer: int | None, folder: Path
) -> tuple[TransformerConfig, Any, tuple[int, ...]]:
    tokens = first_seen(params)
    config = dataclasses.replace(CONFIG, eos=tuple(tokens[i] for i in of_config))
    tokenizer = None
    if of_tokenizer is not None:
        tokenizer = tokenizer_that_ends_with(tokens[of_tokenizer], folder)
    own = () if tokenizer is None else (tokenizer.eos,)
    return config, tokenizer, tuple(dict.fromkeys((*own, *config.eos)))


@ENDS
def test_model_folder(
    of_config: tuple[int, ...], of_tokenizer: int | None, base: Any, tmp_path: Path
):
    config, tokenizer, ends = ends_of(base, of_config, of_tokenizer, tmp_path / "tokenizer")
    save_pretrained(tmp_path / "model", config, base, tokenizer)
    expected = text(base, ends)
    assert expected[-1] in ends and len(expected) < NEW
    auto = transformers.AutoModelForCausalLM.from_pretrained
    assert theirs(auto(tmp_path / "model")) == expected
    (tmp_path / "model" / "generation_config.json").unlink()  # config.json has the same tokens
    assert theirs(auto(tmp_path / "model")) == expected
    if tokenizer is not None:
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
        assert saved.eos_token_id == tokenizer.eos


@ENDS
def test_adapter_folder(
    of_config: tuple[int, ...],
    of_tokenizer: int | None,
    base: Any,
    adapters: Any,
    tmp_path: Path,
):
    """Loaded by peft and by transformers, which find the base by its name in the folder."""
    merged = jax.jit(partial(merge_lora, lora=LORA))(base, adapters)
    config, tokenizer, ends = ends_of(merged, of_config, of_tokenizer, tmp_path / "tokenizer")
    save_pretrained(tmp_path / "base", config, base)
    folder = tmp_path / "adapters"
    save_lora(folder, config, adapters, LORA, base=tmp_path / "base", tokenizer=tokenizer)
    expected = text(merged, ends)
    assert expected[-1] in ends and len(expected) < NEW
    assert text(base, ends) != expected
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    own = transformers.GenerationConfig.from_pretrained(folder)
    model.generation_config = own
    assert theirs(model) == expected
    auto = transformers.AutoModelForCausalLM.from_pretrained
    assert theirs(auto(folder, generation_config=own)) == expected
    if set(ends) == set(config.eos):  # then the base's own settings have the same tokens
        assert theirs(peft.AutoPeftModelForCausalLM.from_pretrained(folder)) == expected
        assert theirs(auto(folder)) == expected


def test_other_generation_settings_are_kept(base: Any, tmp_path: Path):
    """Transformers reads the same settings from a model folder and from an adapter folder."""
    theirs = transformers.GenerationConfig(
        bos_token_id=1,
        eos_token_id=[7, 8],
        pad_token_id=0,
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
    )
    theirs.save_pretrained(tmp_path / "original")
    config = dataclasses.replace(CONFIG, eos=(9, 7))
    save_pretrained(tmp_path / "model", config, base, like=tmp_path / "original")
    shapes = jax.eval_shape(partial(init_lora, lora=LORA), jax.random.key(0), base)
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    save_lora(tmp_path / "own", config, blank, LORA, like=tmp_path / "original")
    for folder in ("model", "own"):
        found = transformers.GenerationConfig.from_pretrained(tmp_path / folder).to_dict()
        assert found == {**theirs.to_dict(), "eos_token_id": [9, 7]}
