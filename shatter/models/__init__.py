"""Language models: params, tokens -> logits."""

from shatter.models.base import LanguageModel, from_flax
from shatter.models.tabular import tabular
from shatter.models.transformer import TransformerConfig, transformer

__all__ = ["LanguageModel", "TransformerConfig", "from_flax", "tabular", "transformer"]
