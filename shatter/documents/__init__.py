"""Scoring, sampling and enumeration of documents, and the LM as a decision process."""

from typing import Any

from shatter.documents.enumeration import (
    document_log_probs,
    enumerate_documents,
    sequence_tempered,
)
from shatter.documents.filters import sampling_logits
from shatter.documents.interface import (
    Interface,
    interface,
    posterior_policy,
    prefix_log_probs,
    soft_values,
)
from shatter.documents.sampling import Samples, pad_prompts, sample
from shatter.documents.scoring import log_prob, response_mask, token_log_probs

__all__ = [
    "DocumentDistribution",
    "Interface",
    "Samples",
    "document_log_probs",
    "enumerate_documents",
    "interface",
    "log_prob",
    "pad_prompts",
    "posterior_policy",
    "prefix_log_probs",
    "response_mask",
    "sample",
    "sampling_logits",
    "sequence_tempered",
    "soft_values",
    "token_log_probs",
]


def __getattr__(name: str) -> Any:
    """Imports `DocumentDistribution` when it is first used, because distrax is slow to import."""
    if name == "DocumentDistribution":
        from shatter.documents.distribution import DocumentDistribution

        return DocumentDistribution
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
