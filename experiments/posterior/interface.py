"""The model as its own policy, reward and transition: which law is optimal at a temperature.

With the reward log pi(token | prefix) the return of a document is log pi(x). The law with the
largest E[return] + temperature * entropy is pi^(1 / temperature) / Z over whole documents, which
soft values find by a recursion over prefixes. Sampling each token at that temperature is another
law, and it lacks some of that objective.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.didactic import EOS, World
from experiments.posterior.config import Config
from experiments.posterior.problem import draw_pretrained
from shatter import documents, numerics
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics, Params

TEMPERATURES = (4.0, 2.0, 1.0, 0.5, 0.25)
LAWS = ("soft_optimal", "token_tempered")


def returns(world: World, params: Params) -> Array:
    """Returns the sum of the rewards of every document, `[D]`, by walking all of them at once.

    Each step takes the document's next token as the action, adds its reward and moves on by the
    transition.
    """
    faces = documents.interface(world.lm)
    tokens, mask = world.space

    def step(
        state: tuple[Array, Array, Array], token: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        so_far, length, total = state
        action, counts = token
        reward = faces.reward(params, so_far, length, action)
        total += jnp.where(counts, reward, 0.0)
        return (*faces.transition(so_far, length, action), total), None

    size = len(tokens)
    prompts = jnp.zeros_like(tokens).at[:, 0].set(tokens[:, 0])
    start = (prompts, jnp.ones(size, int), jnp.zeros(size))
    (_, _, total), _ = jax.lax.scan(step, start, (tokens[:, 1:].T, mask[:, 1:].T))
    return total


def measure_laws(
    world: World, params: Params, temperature: float, *, vocab_size: int, max_length: int
) -> dict[str, Metrics]:
    """Returns measures of the two laws that a temperature leads to.

    Args:
      world: the model and all documents.
      params: the model's parameters.
      temperature: > 0.
      vocab_size: number of tokens.
      max_length: largest number of tokens in a document.

    Returns:
      By law, "soft_optimal" and "token_tempered": "return" = E[log pi], "entropy" and "lacking" =
      V(root) - E[log pi] - temperature * entropy, nats; of the former also "soft_value" = V(root)
      and "law_error", the largest difference of its log-probs from log pi / temperature - log Z.
    """
    own = returns(world, params)
    tables = documents.prefix_log_probs(
        world.lm, params, vocab_size=vocab_size, max_length=max_length
    )
    values, _ = documents.soft_values(tables, temperature=temperature, eos=EOS)
    root = values[0][0]
    # The policy is log pi*(a | s) = (r(s, a) + V(s.a) - V(s)) / temperature. Summed over a
    # document, the values in between cancel.
    soft_optimal = (own - root) / temperature
    tempered = documents.sampling_logits(
        world.lm.apply(params, world.space[0]), temperature=temperature
    )
    laws = dict(zip(LAWS, (soft_optimal, documents.log_prob(tempered, *world.space)), strict=True))
    metrics = {name: _measures(law, own, root, temperature) for name, law in laws.items()}
    error = jnp.abs(soft_optimal - documents.sequence_tempered(own, temperature))
    metrics["soft_optimal"] |= {"soft_value": root, "law_error": jnp.max(error)}
    return metrics


def _measures(law: Array, own: Array, root: Array, temperature: float) -> Metrics:
    mean, entropy = numerics.expectation(law, own), numerics.entropy(law)
    return {"return": mean, "entropy": entropy, "lacking": root - mean - temperature * entropy}


def interface_results(
    config: Config, world: World, keys: Key
) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """Returns metrics `[S, 1]` of the pretrained models, by "interface", law and temperature."""

    def one_seed(key: Key) -> list[dict[str, Metrics]]:
        problem_key, _ = jax.random.split(key)
        model_key, _ = jax.random.split(problem_key)
        params, _ = draw_pretrained(model_key, world)
        sizes = {"vocab_size": config.vocab_size, "max_length": config.max_length}
        return [measure_laws(world, params, t, **sizes) for t in TEMPERATURES]

    measured = jax.jit(
        lambda keys: jax.lax.map(one_seed, keys), compiler_options=compiler_options()
    )(keys)
    return {
        ("interface", law, f"temperature={t:g}"): {
            name: np.asarray(values)[:, None] for name, values in of_laws[law].items()
        }
        for law in LAWS
        for t, of_laws in zip(TEMPERATURES, measured, strict=True)
    }
