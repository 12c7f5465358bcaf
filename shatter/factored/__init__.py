"""Logits that are kept as the product of features and a vocabulary, and are never held whole.

With large vocabularies the logits `[..., T, V]` are the largest array by far, and the log-probs of
given tokens need one column of them and their logsumexp. Both are computed here from slices of the
vocabulary, one after the other, with the closed form of the gradient (softmax minus one-hot), which
multiplies every slice out a second time. Nothing larger than a slice's logits is held, and the
gradient for the vocabulary's matrix is written slice by slice. There is no forward-mode derivative.
"""

from shatter.factored.container import Columns, FactoredLogits, Rows, as_array, multiply
from shatter.factored.sizes import MULTIPLIED_OUT_UP_TO, SLICE_SIZE, slice_size
from shatter.factored.sums import kl_divergence, target_log_probs

__all__ = [
    "MULTIPLIED_OUT_UP_TO",
    "SLICE_SIZE",
    "Columns",
    "FactoredLogits",
    "Rows",
    "as_array",
    "kl_divergence",
    "multiply",
    "slice_size",
    "target_log_probs",
]
