"""The laws of samplers that train nothing, at given numbers of samples."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.didactic import EOS, World
from experiments.posterior.config import Config
from experiments.posterior.problem import Problem, Setting, draw_problem, measure
from shatter import documents, evaluation, inference
from shatter.cli.common.compiling import compiler_options
from shatter.types import Array, Key, Metrics

BUDGETS = (4, 16, 64)
SAMPLERS, WEIGHTS, MOMENTS = range(1, 4)  # folded into a seed's key, which training uses itself


def sampler_metrics(
    config: Config, world: World, setting: Setting, inputs: tuple[Key, Array]
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Returns measures of the law of one document that each sampler draws.

    The laws of best of n and of rejection have closed forms. The law of weighted particles is
    averaged over `config.smc_runs` runs of 64 samples, or as many more runs of fewer samples.

    Args:
      config: the config.
      world: the model and all documents.
      setting: makes the rewards and the target.
      inputs: keys and levels, `[S]` each.

    Returns:
      Metrics `[S]` by sampler and its number of samples. "importance" resamples n samples of p0 by
      their weights; "smc" has a twist with an error of `config.twist_noise`; "weighted_decoding"
      decodes with the same twist, one sample for each document.
    """

    def one_seed(key: Key, level: Array) -> dict[tuple[str, int], Metrics]:
        problem_key, run_key = jax.random.split(key)
        problem = draw_problem(problem_key, level, world, setting)
        laws = _laws(jax.random.fold_in(run_key, SAMPLERS), problem, config, world)
        return {name: measure(problem, law) for name, law in laws.items()}

    def batch(inputs: tuple[Key, Array]) -> list[Metrics]:
        metrics = jax.lax.map(lambda x: one_seed(*x), inputs)
        names.extend(metrics)
        return list(metrics.values())

    names: list[tuple[str, int]] = []
    measured = jax.jit(batch, compiler_options=compiler_options())(inputs)
    return {
        name: {metric: np.asarray(values) for metric, values in metrics.items()}
        for name, metrics in zip(names, measured, strict=True)
    }


def weight_warnings(
    config: Config, world: World, setting: Setting, levels: list[Array]
) -> list[str]:
    """Returns the warnings of `inference.check_weights` about 1,000 samples of the first seed's p0.

    Args:
      config: the config.
      world: the model and all documents.
      setting: makes the rewards and the target.
      levels: `[S]` each, the levels of every seed.

    Returns:
      A line for every level whose effective sample size is small.

    Raises:
      ValueError: if no sample has mass under the target.
    """

    @jax.jit
    @jax.vmap
    def log_weights(level: Array) -> Array:
        first_seed = jax.random.split(jax.random.key(config.seed), config.num_seeds)[0]
        problem_key, run_key = jax.random.split(first_seed)
        problem = draw_problem(problem_key, level, world, setting)
        weight_key = jax.random.fold_in(run_key, WEIGHTS)
        at = jax.random.categorical(weight_key, problem.log_p0, shape=(1000,))
        return (problem.log_target - problem.log_p0)[at]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first_levels = jnp.stack([level[0] for level in levels])
        for level, weights in zip(first_levels, log_weights(first_levels), strict=True):
            inference.check_weights(weights, law_name=f"the target at level {float(level):g}")
    return [str(warning.message) for warning in caught]


def _laws(key: Key, problem: Problem, config: Config, world: World) -> dict[tuple[str, int], Array]:
    """Returns log-probs `[D]` by sampler and number of samples."""
    target = jax.nn.log_softmax(problem.log_target)
    log_weights = problem.log_target - problem.log_p0
    importance_key, smc_key, decoding_key, noise_key = jax.random.split(key, 4)
    twist = _noisy_twist(noise_key, problem, config, world)
    laws = {}
    for n in BUDGETS:
        laws["best_of_n", n] = evaluation.best_of_n_log_probs(
            problem.log_p0, problem.rewards, num_samples=n
        )
        laws["rejection", n] = _rejection_law(problem.log_p0, target, log_weights, n)
        laws["importance", n] = _importance_law(
            jax.random.fold_in(importance_key, n), problem.log_p0, log_weights, n, _runs(config, n)
        )
        laws["smc", n] = _smc_law(jax.random.fold_in(smc_key, n), problem, twist, n, config, world)
    laws["weighted_decoding", 1] = _decoding_law(decoding_key, problem, twist, config, world)
    return laws


def _rejection_law(log_p0: Array, target: Array, log_weights: Array, max_tries: int) -> Array:
    """Returns the law of `inference.rejection_sample`: p*, or the last try if none is accepted."""
    accept = jnp.exp(log_weights - jnp.max(jnp.where(log_p0 > -1e29, log_weights, -jnp.inf)))
    accepted = jnp.sum(jnp.exp(log_p0) * accept)
    never = (1.0 - accepted) ** max_tries
    rejected = jnp.exp(log_p0) * (1.0 - accept) / jnp.maximum(1.0 - accepted, 1e-12)
    return jnp.log((1.0 - never) * jnp.exp(target) + never * rejected)


def _importance_law(
    key: Key, log_p0: Array, log_weights: Array, num_samples: int, num_runs: int
) -> Array:
    at = jax.random.categorical(key, log_p0, shape=(num_runs, num_samples))
    return _law_of_particles(at, log_weights[at], log_p0)


def _law_of_particles(at: Array, log_weights: Array, log_p0: Array) -> Array:
    """Returns the weighted law of particles `[R, N]`, the mean over the runs.

    One pseudo-particle of p0 keeps the log-prob of documents that no run drew finite.
    """
    shares = jax.nn.softmax(log_weights, axis=-1) / len(at)
    law = jnp.zeros(log_p0.shape).at[at.ravel()].add(shares.ravel())
    seen = 1.0 - 1.0 / (1.0 + at.size)
    return jnp.log(seen * law + (1.0 - seen) * jnp.exp(log_p0))


def _noisy_twist(key: Key, problem: Problem, config: Config, world: World) -> inference.Twist:
    """Returns the exact twist with Gaussian errors before a document's end."""
    tokens, mask = world.space
    ref = documents.prefix_log_probs(
        world.lm, problem.params, vocab_size=config.vocab_size, max_length=config.max_length
    )
    rewards = problem.log_target - problem.log_p0
    values, policy = documents.posterior_policy(ref, rewards, tokens, mask, beta=1.0, eos=EOS)
    noisy = []
    for t, level in enumerate(policy):
        noise = config.twist_noise * jax.random.normal(jax.random.fold_in(key, t), level.shape)
        goes_on = (jnp.arange(level.shape[1]) != EOS) & (t < len(policy) - 1)
        noisy.append(level + jnp.where(goes_on[None], noise, 0.0))
    return inference.exact_twist(ref, values, noisy, prompt_length=1)


def _smc_law(
    key: Key,
    problem: Problem,
    twist: inference.Twist,
    num_particles: int,
    config: Config,
    world: World,
) -> Array:
    def run(key: Key) -> inference.Particles:
        return inference.smc(
            world.lm,
            problem.params,
            key,
            jnp.zeros(1, int),
            twist=twist,
            num_particles=num_particles,
            max_length=config.max_length,
            eos=EOS,
        )

    particles = jax.vmap(run)(jax.random.split(key, _runs(config, num_particles)))
    at = _index(particles.tokens, config, world)
    return _law_of_particles(at, particles.log_weights, problem.log_p0)


def _decoding_law(
    key: Key, problem: Problem, twist: inference.Twist, config: Config, world: World
) -> Array:
    samples = inference.weighted_decoding(
        world.lm,
        problem.params,
        key,
        jnp.zeros(1, int),
        twist=twist,
        num_samples=_runs(config, 1),
        max_length=config.max_length,
        eos=EOS,
    )
    at = _index(samples.tokens, config, world)[None]
    return _law_of_particles(at, jnp.zeros(at.shape), problem.log_p0)


def _runs(config: Config, num_samples: int) -> int:
    """Returns the number of runs, such that all runs together draw the same number of samples."""
    return config.smc_runs * BUDGETS[-1] // num_samples


def _index(tokens: Array, config: Config, world: World) -> Array:
    """Returns the index in the space of each document of tokens `[..., 1 + L]`."""
    powers = config.vocab_size ** jnp.arange(config.max_length)[::-1]
    code = lambda tokens: tokens[..., 1:] @ powers  # in base V
    table = jnp.zeros(config.vocab_size**config.max_length, int)
    table = table.at[code(world.space[0])].set(jnp.arange(len(world.space[0])))
    return table[code(tokens)]
