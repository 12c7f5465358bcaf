"""The forms of a response's utility, by the names of the flag --utility."""

from typing import Literal

from shatter import losses
from shatter.types import Array

Form = Literal["sum", "tilt", "mean", "ratio"]


def response_utility(
    form: Form, log_probs: Array, ref_log_probs: Array, lengths: Array, *, scale: float
) -> Array:
    """Returns the utility of responses by the name of its form.

    sum: log pi. tilt: log pi - log p0. mean and ratio: `scale` times these, a token. Where each
    form ends is told in `shatter.losses.tilted_utilities` and in docs/finetune.md.

    Args:
      form: the name.
      log_probs: `[...]`, log pi of the responses, summed over their tokens, nats.
      ref_log_probs: `[...]`, log p0 of the same.
      lengths: int `[...]`, the numbers of those tokens.
      scale: mean and ratio: nats of utility for a nat a token.

    Returns:
      `[...]`, nats.
    """
    if form in ("tilt", "ratio"):
        log_probs = losses.tilted_utilities(log_probs, ref_log_probs)
    return scale * log_probs / lengths if form in ("mean", "ratio") else log_probs
