"""Language models: pure functions from parameters and tokens to logits."""

from shatter.models.base import LanguageModel, from_flax, lazy_logits
from shatter.models.layers import Layers, split_layers
from shatter.models.lora import LoraConfig, init_lora, merge_lora, with_lora
from shatter.models.lora_files import load_lora, save_lora
from shatter.models.narrow import narrow
from shatter.models.partitions import partition
from shatter.models.pretrained import (
    end_tokens,
    find_pretrained,
    load_pretrained,
    save_pretrained,
)
from shatter.models.rope import Rope
from shatter.models.tabular import tabular
from shatter.models.tokenizer import CHAT_TEMPLATES, Tokenizer, load_tokenizer
from shatter.models.transformer import transformer
from shatter.models.transformer_config import TransformerConfig, select_layers

__all__ = [
    "CHAT_TEMPLATES",
    "LanguageModel",
    "Layers",
    "LoraConfig",
    "Rope",
    "Tokenizer",
    "TransformerConfig",
    "end_tokens",
    "find_pretrained",
    "from_flax",
    "init_lora",
    "lazy_logits",
    "load_lora",
    "load_pretrained",
    "load_tokenizer",
    "merge_lora",
    "narrow",
    "partition",
    "save_lora",
    "save_pretrained",
    "select_layers",
    "split_layers",
    "tabular",
    "transformer",
    "with_lora",
]
