import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import pytest
import tokenizers

from shatter import models

CHARACTERS = "abcdefgh "


@pytest.fixture(scope="session")
def make_model() -> Callable[..., None]:
    """`(folder, num_layers, words=(), seed=1)`: writes a random model of the Llama family.

    A token a character, or a word where words are given; its laws are then far from uniform.
    """
    return _make_model


def _make_model(folder: Path, num_layers: int, words: Sequence[str] = (), seed: int = 1) -> None:
    texts = words or CHARACTERS
    vocabulary = {name: n for n, name in enumerate(["<unk>", "<s>", "</s>", *texts])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    if words:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
        backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>"])
    config = models.TransformerConfig(
        vocab_size=len(vocabulary),
        max_length=32,
        width=8,
        num_layers=num_layers,
        num_heads=2,
        num_kv_heads=1,
        mlp_width=8,
        norm="rms",
        activation="silu",
        gated=True,
        rope=models.Rope(),
        qkv_bias=False,
        attention_out_bias=False,
        mlp_bias=False,
        tied=True,
        head_bias=False,
        bos=1,
        eos=(2,),
    )
    with jax.enable_x64(False):
        params = jax.jit(models.transformer(config).init)(jax.random.key(seed))
    if words:
        embedding = params["params"]["token_embedding"]
        embedding["embedding"] = 3 * embedding["embedding"]  # it is tied
    models.save_pretrained(folder, config, params)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
