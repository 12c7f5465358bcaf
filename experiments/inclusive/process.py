"""The run of one seed of one arm on a recorded population."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.chunks import Chunk, Process
from experiments.inclusive.config import Config
from experiments.inclusive.populations import Population
from experiments.inclusive.texts import Pool, option_log_probs
from shatter import choice, documents, ensembles, exploration, losses, models, training
from shatter.types import Array, Comparison, Key, Metrics, Params, Query, Rater, item_query


class Arm(NamedTuple):
    """Who learns, how a pair is chosen, and whether the question is chosen by information too."""

    learner: str  # "ensemble" or "map"
    explore: Callable[..., Array]
    picks_prompt: bool = False


ARMS = {
    "random_map": Arm("map", exploration.uniform),
    "greedy": Arm("map", exploration.greedy),
    "boltzmann": Arm("map", exploration.boltzmann),
    "random": Arm("ensemble", exploration.uniform),
    "thompson": Arm("ensemble", exploration.thompson),
    "double_thompson": Arm("ensemble", exploration.double_thompson),
    "double_thompson_sampled": Arm("ensemble", exploration.double_thompson_sampled),
    "infomax": Arm("ensemble", exploration.infomax, picks_prompt=True),
    "variance": Arm("ensemble", exploration.variance, picks_prompt=True),
    "log_ratio_variance": Arm("ensemble", exploration.log_ratio_variance, picks_prompt=True),
    "ucb": Arm("ensemble", exploration.ucb),
}


class People(NamedTuple):
    """What differs between seeds: who answers and who judges.

    Attributes:
      weights: `[R]`, 0 for those who judge.
      truth: `[P, K]`, the judges' shares.
      wins: `[P, K, K]`, the judges' pairwise choices.
    """

    weights: Array
    truth: Array
    wins: Array


def people_of(population: Population) -> People:
    """The divisions of a population, `[S]` on every leaf."""
    return People(*map(jnp.asarray, (population.weights, population.truth, population.wins)))


def make_process(
    config: Config,
    arm: str,
    population: Population,
    pool: Pool,
    lm: models.LanguageModel,
    params: Params,
) -> Process:
    """The run of one seed of one arm; its input is `(key, People)`.

    Args:
      config: the config.
      arm: a name in `ARMS`.
      population: the recorded people.
      pool: the texts.
      lm: the language model.
      params: its pretrained parameters.

    Returns:
      `start` and `rounds`; a metric "prediction" holds the predicted shares `[P, K]`.
    """
    answers = jnp.asarray(population.answers)
    asked = jnp.asarray(population.asked)
    judged = jnp.asarray(population.judged)
    learner, explore, picks_prompt = ARMS[arm]
    ensemble = _ensemble(config, learner, lm, params)
    scored = lambda own: option_log_probs(lm, own, pool)

    def candidates(key: Key, shared: Params, own: Params) -> Query:
        del shared
        drawn = jax.random.categorical(key, jnp.log(asked), shape=(config.prompts_compared,))
        prompt = drawn[0]
        if picks_prompt:
            best = _best_pair_gain(jax.vmap(scored)(own), pool.valid)
            prompt = drawn[jnp.argmax(best[drawn])]
        items = jnp.arange(pool.valid.shape[1])  # the ids say all that a rater needs
        return item_query(items, prompt_id=prompt, valid=pool.valid[prompt])

    def score(shared: Params, own: Params, responses: Query) -> Array:
        del shared
        return scored(own)[responses.prompt_id[..., None], responses.item_ids]

    prior_rows = prior_comparisons(pool, jnp.zeros(pool.valid.shape)).weight.shape[0]

    def interaction(num_queries: int) -> training.Interaction:
        return training.interaction(
            ensemble,
            propose=training.pair_proposer(candidates, score, explore, num_queries=num_queries),
            score=score,
            loss=losses.ilhf_ranking_loss,
            optimizer=optax.adam(_warm_up(config)),
            capacity=prior_rows + int(answers_after(config)[-1]) * len(population.prompts),
            num_steps=config.num_steps,
        )

    def rater_of(people: People) -> Rater:
        if answers.ndim == 3:
            return choice.recorded_ranking_rater(answers, people.weights)
        num_items = pool.valid.shape[1]
        return choice.recorded_choice_rater(answers, people.weights, num_items=num_items)

    def evaluate(people: People, state: training.InteractionState) -> Metrics:
        return _metrics(people, jax.vmap(scored)(state.members.params), pool.valid, judged)

    def start(inputs: tuple[Key, People]) -> tuple[Any, Metrics]:
        key, people = inputs
        init_key, weight_key, run_key = jax.random.split(key, 3)
        state = interaction(1).init(init_key)
        if config.prior_answers:
            prior = prior_comparisons(pool, scored(params))
            prior = prior._replace(weight=config.prior_answers * prior.weight)
            weights = ensemble.observation_weights(weight_key, prior.weight.shape)
            state = state._replace(store=training.add_comparisons(state.store, prior, weights))
        return (state, run_key, people), evaluate(people, state)

    def rounds(carry: Any, first_round: Array, chunk: Chunk) -> tuple[Any, Metrics]:
        state, key, people = carry
        state, metrics = training.run_rounds(
            interaction(chunk.num_queries),
            rater_of(people),
            lambda state: evaluate(people, state),
            state,
            key,
            num_rounds=chunk.num_rounds,
            first_round=first_round,
        )
        return (state, key, people), metrics

    return Process(start, rounds)


def prior_comparisons(pool: Pool, log_probs: Array) -> Comparison:
    """What p0 would answer: every pair of every prompt, both ways, each prompt's weights sum to 1.

    In the store beside the answers they are a prior for the choices, as pseudo-counts are for
    shares; each member of an ensemble weighs them by draws of its own, as it does the answers.

    Args:
      pool: P prompts with at most K options.
      log_probs: `[P, K]`, the options' log-probs under p0, nats.

    Returns:
      The comparisons.
    """
    valid = np.asarray(pool.valid)
    prompts, first, second = np.nonzero(
        valid[:, :, None] & valid[:, None, :] & ~np.eye(valid.shape[1], dtype=bool)
    )
    num_pairs = np.bincount(prompts)[prompts] / 2
    shown = log_probs[prompts[:, None], np.stack([first, second], axis=1)]
    size = len(prompts)
    return Comparison(
        item_query(jnp.stack([first, second], axis=1), prompt_id=jnp.asarray(prompts)),
        jnp.broadcast_to(jnp.array([1, 2]), (size, 2)),
        jax.nn.sigmoid(shown[:, 0] - shown[:, 1]) / num_pairs,
    )


def _ensemble(
    config: Config, learner: str, lm: models.LanguageModel, params: Params
) -> ensembles.Ensemble:
    """Members are drawn close to theta_0, for far ones are no language models, and held loosely.

    What keeps them apart is that each weighs the answers and the prior's choices by its own draws.
    """
    if learner == "map":
        return ensembles.point_estimate(lm, params, prior_scale=config.prior_scale)
    drawn = ensembles.anchored(
        lm, params, num_members=config.num_members, prior_scale=config.member_scale
    )
    return drawn._replace(
        penalty=lambda own, anchor: ensembles.anchor_penalty(own, anchor, config.prior_scale)
    )


def _warm_up(config: Config) -> optax.Schedule:
    """Linear over the small rounds: Adam's first steps are as long on noise as on a signal."""
    num_steps = config.rounds_small * config.num_steps
    return optax.linear_schedule(0.1 * config.learning_rate, config.learning_rate, num_steps)


def chunks_of(config: Config, population: Population) -> list[Chunk]:
    """One chunk a round: as many small rounds, then as many large ones, as the config says.

    Two sizes are two programs to compile; the large rounds spare steps once answers are many.
    """
    small, large = config.answers_small, config.answers_large
    sizes = [small] * config.rounds_small + [large] * config.rounds_large
    return [Chunk(1, size * len(population.prompts)) for size in sizes]


def answers_after(config: Config) -> np.ndarray:
    """`[R]`, answers a prompt after every round, the mean over prompts."""
    small, large = config.answers_small, config.answers_large
    return np.cumsum([small] * config.rounds_small + [large] * config.rounds_large)


def _best_pair_gain(members: Array, valid: Array) -> Array:
    """`[P]`, the largest expected information gain of a pair of each prompt, from [M, P, K]."""
    gains = jax.vmap(exploration.information_gain, in_axes=1)(jnp.where(valid, members, 0.0))
    pairs = valid[:, :, None] & valid[:, None, :]
    return jnp.max(gains, axis=(1, 2), where=pairs, initial=0.0)


def _metrics(people: People, members: Array, valid: Array, judged: Array) -> Metrics:
    """Measures of the members' mixture of shares, from members[M, P, K]."""
    log_mass = jax.nn.logsumexp(members, axis=-1, keepdims=True)
    shares = ensembles.mixture_log_probs(members - log_mass)  # renormalised over the options
    finite = jnp.where(valid, shares, 0.0)
    kl = documents.kl_divergence(jnp.log(people.truth), finite)
    log_odds = finite[:, :, None] - finite[:, None, :]
    pair_loss = -jnp.sum(people.wins * jax.nn.log_sigmoid(log_odds), axis=(1, 2))
    hits = jnp.argmax(shares, axis=1) == jnp.argmax(people.truth, axis=1)
    return {
        "kl": jnp.sum(judged * kl),
        "choice_log_loss": jnp.sum(pair_loss) / jnp.sum(people.wins),
        "best_known": jnp.sum(judged * hits),
        "entropy": jnp.sum(judged * documents.entropy(shares)),
        "leak": 1.0 - jnp.sum(judged * jnp.mean(jnp.exp(log_mass[..., 0]), axis=0)),
        "prediction": jnp.exp(shares),
    }
