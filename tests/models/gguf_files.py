"""Writes tiny GGUF files by the package gguf, and the folders that they should load as."""

import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import tokenizers
from safetensors.numpy import load_file

from shatter.models import Rope, TransformerConfig, save_pretrained, transformer

HARD = (
    *("", "a", " ", "  ", "   x", "x   ", "trailing   \n\n", "\n  \n\t\tx\r\n"),
    *("1234567890 12 3.14159", "0x1F 1,000,000 ½ ² ①", "I'm you're WE'LL don't"),
    *("😀👍🏽", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "שלום עולם", "مرحبا بالعالم ١٢٣", "क्षत्रिय १२३"),
    *(
        "naïve café cafe\u0301",
        "日本語テキスト、中文。",
        "한국어",
        "\uff26\uff55\uff4c\uff4c \ufb01",
        "a\u00a0b\u200b\ufeff\x00\x7f",
    ),
    *("def f(x):\n\treturn {'a': x[0]}  # ok\n\n\n    y = 2", "https://a.com/b?c=d_e-f"),
    *("<s>x</s>", " <|im_start|>user\nhi<|im_end|> x", "<tool>  a <tool>", "▁x ▁▁y"),
)
"""Texts at which tokenizers tend to differ."""

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")

_PLAIN = TransformerConfig(
    vocab_size=1,  # replaced by that of the tokenizer
    max_length=64,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    mlp_width=64,
    norm="rms",
    norm_epsilon=1e-5,
    activation="silu",
    gated=True,
    rope=Rope(theta=100_000.0),
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    tied=True,
    head_bias=False,
    bos=0,
    eos=(1,),
)


def _changed(**fields: Any) -> TransformerConfig:
    return TransformerConfig(**(vars(_PLAIN) | fields))


CONFIGS = {
    "llama": _PLAIN,
    "llama-untied": _changed(tied=False, num_kv_heads=4),
    "llama-biases": _changed(qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "llama-linear": _changed(rope=Rope(theta=1e4, scaling="linear", factor=4.0)),
    "llama-3": _changed(
        rope=Rope(theta=500_000.0, scaling="llama3", factor=8.0), num_heads=2, head_size=32
    ),
    "qwen2": _changed(qkv_bias=True),
    "qwen3": _changed(qk_norm=True, head_size=16),
    "gemma3": _changed(
        num_layers=7,
        activation="gelu",
        qk_norm=True,
        post_norms=True,
        norm_offset=True,
        scaled_embedding=True,
        attention_size=8,
        window=4,
        full_layers=(5,),
        local_theta=10_000.0,
    ),
}
"""Configurations by the architecture of the file, before a hyphen."""

_TRAINING = [
    "the cat sat on the mat, the dog ran to the house and the cat ran after the dog",
    "don't we'll 12345 67890 hello world hello there 日本語 日本 café",
    "    return x\n\n    if x:\n        return y\n  the   cat",
] * 3


@cache
def byte_level(pre: str) -> tokenizers.Tokenizer:
    """Returns a small tokenizer of bytes, cut as the models that the name stands for cut texts.

    The patterns are those of the tokenizer.json of GPT-2, SmolLM2, Llama 3.1 and Qwen3.
    """
    parts = tokenizers.pre_tokenizers
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    cuts = {
        "gpt-2": [],
        "smollm": [parts.Digits(individual_digits=True)],
        "llama-bpe": [parts.Split(tokenizers.Regex(rf"{words}|\p{{N}}{{1,3}}|{rest}"), "isolated")],
        "qwen2": [parts.Split(tokenizers.Regex(rf"{words}|\p{{N}}|{rest}"), "isolated")],
    }[pre]
    by_pattern = pre in ("gpt-2", "smollm")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama-bpe"))
    made.normalizer = tokenizers.normalizers.NFC() if pre == "qwen2" else None
    made.pre_tokenizer = parts.Sequence(
        [*cuts, parts.ByteLevel(add_prefix_space=False, use_regex=by_pattern)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=parts.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    made.train_from_iterator(_TRAINING, trainer)
    made.add_tokens(["<tool>"])
    return made


def scores() -> dict[str, float]:
    """Returns the scores of the pieces of a SentencePiece vocabulary."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False)
    made.train_from_iterator(_TRAINING, trainer)
    ids = made.get_vocab()
    return {
        piece: float(-number) for piece, number in sorted(ids.items(), key=lambda item: item[1])
    }


def write_byte_level(writer: gguf.GGUFWriter, pre: str) -> int:
    """Adds the tokenizer `byte_level(pre)` to a file, and returns the number of its tokens."""
    made = json.loads(byte_level(pre).to_str())
    ids = byte_level(pre).get_vocab()
    flags = {token["id"]: token["special"] for token in made["added_tokens"]}
    types = gguf.TokenType
    added = {True: types.CONTROL, False: types.USER_DEFINED, None: types.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = sorted(ids, key=ids.__getitem__)
    unused = [f"[PAD{i}]" for i in range(len(tokens), len(tokens) + 3)]
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*(added[flags.get(ids[t])] for t in tokens), *[types.UNUSED] * 3])
    writer.add_token_merges([" ".join(merge) for merge in made["model"]["merges"]])
    return len(tokens) + 3


def scored_tokens() -> dict[str, tuple[float, int]]:
    """Returns the score and the type of every token of a SentencePiece file, ordered by id."""
    types = gguf.TokenType
    tokens = dict.fromkeys(SPECIAL, (0.0, types.CONTROL))
    tokens["<unk>"] = (0.0, types.UNKNOWN)
    tokens |= {f"<0x{byte:02X}>": (0.0, types.BYTE) for byte in range(256)}
    tokens |= dict.fromkeys(("<tool>", "  ", "   "), (0.0, types.USER_DEFINED))
    return tokens | {piece: (score, types.NORMAL) for piece, score in scores().items()}


def write_scored(writer: gguf.GGUFWriter, *, prefix: bool) -> int:
    """Adds a SentencePiece tokenizer to a file, and returns the number of its tokens."""
    tokens = scored_tokens()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(tokens))
    writer.add_token_scores([score for score, _ in tokens.values()])
    writer.add_token_types([kind for _, kind in tokens.values()])
    writer.add_unk_token_id(list(tokens).index("<unk>"))
    writer.add_add_space_prefix(prefix)
    return len(tokens)


@cache
def _shapes(config: TransformerConfig) -> Any:
    return jax.eval_shape(transformer(config).init, jax.random.key(0))


def random_params(config: TransformerConfig) -> Any:
    """Returns parameters that differ everywhere, and to which 1 can be added exactly."""
    generator = np.random.Generator(np.random.PCG64(0))

    def draw(leaf: Any) -> np.ndarray:
        values = np.round(generator.normal(size=leaf.shape) * 256) / 256
        return values.astype(np.float32)

    return jax.tree.map(draw, _shapes(config))


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Returns rows in the order of llama's files: one of a head's first half, one of its second."""
    order, size = [], len(values) // heads
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + size // 2 + i]
    return values[order]


def write_gguf(
    file: Path,
    name: str = "llama",
    *,
    kind: str = "F32",
    pre: str | None = "smollm",
    prefix: bool = True,
    change: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    edit: Callable[[dict[str, np.ndarray]], Any] = lambda tensors: None,
) -> Path:
    """Writes a GGUF file, and returns the folder that it should load as.

    Args:
      file: the path of the new file; the folder is beside it.
      name: a key of `CONFIGS`.
      kind: the type of matrices: "F32", "F16" or "Q8_0".
      pre: the pre-tokenizer of bytes; None = a SentencePiece tokenizer.
      prefix: whether the latter adds a space before a text.
      change: changes the settings before they are written.
      edit: changes the tensors before they are written.
    """
    architecture = name.partition("-")[0]
    writer = gguf.GGUFWriter(file, architecture)
    size = write_byte_level(writer, pre) if pre else write_scored(writer, prefix=prefix)
    config = TransformerConfig(**(vars(CONFIGS[name]) | {"vocab_size": size}))
    folder = file.with_suffix("")
    save_pretrained(folder, config, random_params(config))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: _rounded(values, kind) for name, values in tensors.items()}
    _save(folder, tensors)
    _write_settings(writer, config)
    change(writer)
    named = _named(architecture, config, tensors)
    edit(named)
    for label, values in named.items():
        matrix = values.ndim == 2 and kind != "F32"
        code = gguf.GGMLQuantizationType[kind if matrix else "F32"]
        writer.add_tensor(label, gguf.quants.quantize(values, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def _rounded(values: np.ndarray, kind: str) -> np.ndarray:
    if values.ndim == 1 or kind == "F32":
        return values
    code = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(values, code), code)


def _save(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")


def _write_settings(writer: gguf.GGUFWriter, config: TransformerConfig) -> None:
    assert config.rope is not None
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.size_of_head)
    writer.add_value_length(config.size_of_head)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope.theta)
    if config.rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.factor)
    if config.window is not None:
        writer.add_sliding_window(config.window)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)


def _named(
    architecture: str, config: TransformerConfig, tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the tensors by the names that the package gives them, as llama.cpp stores them."""
    code = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "gemma3": "GEMMA3"}[architecture]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[code], config.num_layers)
    named = {}
    for name, values in tensors.items():
        label = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert label is not None, name
        if architecture == "llama" and ("attn_q." in label or "attn_k." in label):
            values = interleaved(values, config.num_heads if "_q." in label else config.kv_heads)
        if architecture == "gemma3" and label.endswith("norm.weight"):
            values = values + 1
        named[label] = values
    if config.rope is not None and config.rope.scaling == "llama3":
        named["rope_freqs.weight"] = divisors(config.size_of_head, config.rope)
    return named


def divisors(size: int, rope: Rope) -> np.ndarray:
    """Returns the divisors of Llama 3's frequencies, by wavelengths as in its reference code."""
    values: list[float] = []
    for i in range(0, size, 2):
        wavelength = 2 * np.pi * rope.theta ** (i / size)
        if wavelength < rope.original_max_length / rope.high_frequency_factor:
            values.append(1.0)
        elif wavelength > rope.original_max_length / rope.low_frequency_factor:
            values.append(rope.factor)
        else:
            low, high = rope.low_frequency_factor, rope.high_frequency_factor
            smooth = (rope.original_max_length / wavelength - low) / (high - low)
            values.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(values, np.float32)


def joined(text: str, pieces: dict[str, float], tokens: Sequence[str]) -> list[int]:
    """Returns SentencePiece's tokens of a text whose spaces are replaced, by the definition.

    Of all neighbours that make a piece, those of the highest score are joined, the first of them if
    several have it. What is no piece then becomes bytes.
    """
    parts = list(text)
    while True:
        pairs = [(pieces.get(a + b), -i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        known = [pair for pair in pairs if pair[0] is not None]
        if not known:
            break
        i = -max(known)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = {token: number for number, token in enumerate(tokens)}
    found: list[int] = []
    for part in parts:
        in_bytes = [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
        found += [ids[part]] if part in pieces else in_bytes
    return found
