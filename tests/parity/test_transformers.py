"""Models of the library transformers that we load and save have the same logits and texts.

Weights are random, biases and norms too, so that no tensor can be dropped or swapped unseen.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.models import transformer
from shatter.models.pretrained import load_pretrained, save_pretrained
from shatter.models.tokenizer import load_tokenizer

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="parity needs tokenizers")
pytest.importorskip("safetensors", reason="parity needs safetensors")
pytest.importorskip("jinja2", reason="parity needs jinja2")

VOCAB, LENGTH, NEW = 61, 96, 64
LLAMA = {
    "vocab_size": VOCAB,
    "max_position_embeddings": LENGTH,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,  # so that low, high and middle frequencies are all met
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_positions": LENGTH,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA3 = LLAMA | {
    "hidden_size": 24,
    "num_hidden_layers": 7,  # the sixth has full attention
    "head_dim": 8,
    "query_pre_attn_scalar": 5,
    "sliding_window": 4,
    "rms_norm_eps": 1e-3,
}
CONFIGS: dict[str, Any] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-untied-exact-gelu": (
        "GPT2",
        GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 48},
    ),
    "llama": ("Llama", LLAMA),
    "llama3-scaling-biases": (
        "Llama",
        LLAMA | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-linear-scaling": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    ),
    "qwen2": ("Qwen2", LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "qwen2-tied": ("Qwen2", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 12, "rms_norm_eps": 1e-3}),
    "qwen3-biases": ("Qwen3", LLAMA | {"head_dim": 8, "attention_bias": True}),
    "gemma3": ("Gemma3Text", GEMMA3),
    "gemma3-scaling-biases": (
        "Gemma3Text",
        GEMMA3
        | {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "num_hidden_layers": 3,
            "attention_bias": True,
            "sliding_window": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "gemma3-deep": ("Gemma3Text", GEMMA3 | {"num_hidden_layers": 13, "hidden_size": 32}),
}
every_family = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread, because models this small run slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(name: str) -> Any:
    """Returns a model of transformers with Gaussian weights."""
    kind, settings = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    auto = transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    return model


def randomise(model: Any) -> None:
    """Draws weights; those of norms are around what they begin with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            initial = parameter.clone()
            parameter.normal_(0.0, 0.25, generator=generator)
            if label.endswith("weight") and parameter.ndim == 1:
                parameter += initial


def their_logits(model: Any, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(valid.astype(int)),
            position_ids=torch.tensor(positions),
        )
    return output.logits.numpy()


def padded_batch() -> tuple[np.ndarray, np.ndarray]:
    """Returns documents without padding, with padding on the left and on the right."""
    tokens = np.random.Generator(np.random.PCG64(1)).integers(3, VOCAB, (3, 40))
    valid = np.ones(tokens.shape, bool)
    valid[1, :9] = False
    valid[2, -13:] = False
    return tokens, valid


@partial(jax.jit, static_argnums=0)
def greedy(lm: Any, params: Any, prompt: Any) -> Any:
    """Returns the most likely continuations of `prompt[B, P]`, `[B, NEW]`."""
    cache = lm.init_cache(prompt.shape[0], prompt.shape[1] + NEW)
    logits, cache = lm.decode(params, cache, prompt)

    def step(carry, _):
        token, cache = carry
        logits, cache = lm.decode(params, cache, token[:, None])
        return (jnp.argmax(logits[:, -1], axis=-1), cache), token

    first = jnp.argmax(logits[:, -1], axis=-1)
    return jax.lax.scan(step, (first, cache), length=NEW)[1].T


@every_family
def test_family(name: str, tmp_path: Path):
    """Logits with and without padding, greedy texts, and the folder that we save."""
    model = random_model(name)
    model.save_pretrained(tmp_path / "theirs")
    config, params, tokenizer = load_pretrained(tmp_path / "theirs")
    assert tokenizer is None
    assert (config.bos, config.eos) == (1, (2,))

    lm = transformer(config)
    tokens, valid = padded_batch()
    theirs = their_logits(model, tokens, valid)
    ours = jax.jit(lm.apply)(params, jnp.asarray(tokens), valid=jnp.asarray(valid))
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], rtol=0, atol=1e-4)
    assert np.std(theirs[valid]) > 0.5  # logits that could differ

    prompt = tokens[:2, :7]
    model.generation_config.eos_token_id = None
    continued = model.generate(
        torch.tensor(prompt),
        attention_mask=torch.ones(prompt.shape, dtype=int),
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(
        greedy(lm, params, jnp.asarray(prompt)), continued[:, prompt.shape[1] :].numpy()
    )

    save_pretrained(tmp_path / "ours", config, params)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    assert type(again) is type(model)
    np.testing.assert_array_equal(their_logits(again.eval(), tokens, valid), theirs)
    assert again.generation_config.eos_token_id == 2
    assert load_pretrained(tmp_path / "ours")[0] == config


def test_the_text_part_of_a_model_of_text_and_images(tmp_path: Path):
    """It is saved as a model of text alone, which has the same logits in transformers."""
    images = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    images |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=GEMMA3, vision_config=images, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "theirs")
    config, params, _ = load_pretrained(tmp_path / "theirs")
    tokens, valid = padded_batch()
    theirs = their_logits(model, tokens, valid)
    ours = jax.jit(transformer(config).apply)(params, jnp.asarray(tokens), valid=jnp.asarray(valid))
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], rtol=0, atol=1e-4)
    save_pretrained(tmp_path / "ours", config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    assert type(again).__name__ == "Gemma3ForCausalLM"
    np.testing.assert_allclose(
        their_logits(again.eval(), tokens, valid)[valid], theirs[valid], rtol=0, atol=1e-4
    )


CHAT = """{%- if messages[0]['role'] == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages if message.role != 'system' %}
    {%- if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{ message.content | trim }}{% endgeneration %}
    {{- '<|im_end|>' + '\\n' }}
    {%- if loop.index == 9 %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{{ {"eos": eos_token, "é": [1, "<b>"]} | tojson }}"""
MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": " How are you? "},
    {"role": "assistant", "content": "Well."},
]


def their_tokenizer() -> Any:
    """Returns a tokenizer of characters with special tokens."""
    characters = sorted({*"".join(m["content"] + m["role"] for m in MESSAGES), *CHAT})
    specials = ["<|im_start|>", "<|im_end|>", "<unk>"]
    vocabulary = {piece: i for i, piece in enumerate([*specials, *characters])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=specials[0],
        eos_token=specials[1],
        unk_token=specials[2],
        chat_template=CHAT,
    )


@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_chat(add_generation_prompt: bool, tmp_path: Path):
    theirs = their_tokenizer()
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.chat_template == CHAT
    text = theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert ours.render_chat(MESSAGES, add_generation_prompt=add_generation_prompt) == text
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text), skip_special=False) == text


def test_tokenizer_with_another_template(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    theirs = their_tokenizer()
    theirs.save_pretrained(tmp_path / "theirs")
    load_tokenizer(tmp_path / "theirs").with_chat_template("plain").save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = again.apply_chat_template(MESSAGES[1:], tokenize=False)
    assert text == "User:  How are you? \nAssistant: Well."
    assert again.get_vocab() == theirs.get_vocab()
    assert again.eos_token_id == theirs.eos_token_id
