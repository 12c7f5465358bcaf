"""A language model as a distrax distribution over documents.

`shatter.documents` imports this module on first use only, because distrax is an optional dependency
and slow to import: it imports tensorflow_probability.
"""

import chex
import jax.numpy as jnp

from shatter.documents.enumeration import document_log_probs, enumerate_documents
from shatter.documents.sampling import sample
from shatter.documents.scoring import response_mask
from shatter.models import LanguageModel
from shatter.numerics import LOG_ZERO, entropy
from shatter.types import Array, Key, Params

try:
    import distrax
except ImportError as error:
    raise ImportError(
        "shatter.documents.DocumentDistribution needs distrax, which cannot be imported "
        f"({error}): pip install 'shatter-lm[distributions]'"
    ) from error


class DocumentDistribution(distrax.Distribution):
    """The distribution of a language model over documents that follow a prompt.

    An event is `tokens[P + max_length]`: the prompt and the response. Tokens after an EOS do not
    matter.
    """

    def __init__(
        self,
        lm: LanguageModel,
        params: Params,
        prompt: Array,
        *,
        vocab_size: int,
        max_length: int,
        eos: int | None = None,
    ) -> None:
        """Binds a language model and its parameters to a prompt.

        Args:
          lm: the language model.
          params: its parameters.
          prompt: int `[P]`, at least one token.
          vocab_size: V, number of tokens.
          max_length: largest number of response tokens.
          eos: the token that ends a response; None = every response has `max_length` tokens.
        """
        chex.assert_rank(prompt, 1)
        super().__init__()
        self._lm = lm
        self._params = params
        self._prompt = jnp.asarray(prompt, int)
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._eos = eos

    @property
    def event_shape(self) -> tuple[int]:
        """The shape of a document, `(P + max_length,)`."""
        return (self._prompt.shape[0] + self._max_length,)

    def _sample_n(self, key: Key, n: int) -> Array:
        return self._sample_n_and_log_prob(key, n)[0]

    def _sample_n_and_log_prob(self, key: Key, n: int) -> tuple[Array, Array]:
        samples = sample(
            self._lm,
            self._params,
            key,
            self._prompt,
            num_samples=n,
            max_length=self._max_length,
            eos=self._eos,
        )
        return samples.tokens, samples.raw_log_probs

    def log_prob(self, value: Array) -> Array:
        """Returns the log-prob of documents `value[..., P + max_length]`, nats.

        It is -1e30 for documents that begin with another prompt.
        """
        prompt_length = self._prompt.shape[0]
        mask = response_mask(value, prompt_length=prompt_length, eos=self._eos)
        log_probs = document_log_probs(self._lm, self._params, value, mask)
        prompts = value[..., :prompt_length]
        is_event = jnp.all(prompts == jnp.broadcast_to(self._prompt, prompts.shape), axis=-1)
        return jnp.where(is_event, log_probs, LOG_ZERO)

    def entropy(self) -> Array:
        """Returns the entropy in nats, exact by enumeration of all documents.

        Raises:
          ValueError: if there are more than a million documents.
        """
        responses, _ = enumerate_documents(
            vocab_size=self._vocab_size, max_length=self._max_length, eos=self._eos
        )
        prompts = jnp.broadcast_to(self._prompt, (responses.shape[0], self._prompt.shape[0]))
        return entropy(self.log_prob(jnp.concatenate([prompts, responses[:, 1:]], axis=1)))
