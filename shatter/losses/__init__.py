"""Arrays of log-probs -> one loss a comparison or sample; never a model."""

from shatter.losses.inclusive import forward_kl_loss, ilhf_loss, ilhf_ranking_loss
from shatter.losses.posterior import exact_posterior_loss, kl_k1, kl_k2, kl_k3, posterior_loss

__all__ = [
    "exact_posterior_loss",
    "forward_kl_loss",
    "ilhf_loss",
    "ilhf_ranking_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "posterior_loss",
]
