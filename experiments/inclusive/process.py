"""The run of one seed of one arm on a recorded population."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.chunks import Chunk, Process
from experiments.inclusive.arms import ARMS, Arm
from experiments.inclusive.config import Config
from experiments.inclusive.measures import Judges, measures
from experiments.inclusive.plan import answers_after, warm_up
from experiments.inclusive.populations import Population
from experiments.inclusive.prior import num_prior_comparisons, prior_comparisons
from experiments.inclusive.texts import Pool, option_log_probs
from shatter import choice, ensembles, exploration, losses, models, training
from shatter.training import InteractionState
from shatter.types import Array, Key, Metrics, Params, Query, Rater, item_query


class Study(NamedTuple):
    """What all seeds of an arm share.

    Attributes:
      config: the config.
      arm: how the arm learns and chooses.
      population: the recorded people.
      pool: the texts.
      lm: the language model.
      params: its pretrained parameters.
    """

    config: Config
    arm: Arm
    population: Population
    pool: Pool
    lm: models.LanguageModel
    params: Params

    def log_probs(self, params: Params) -> Array:
        """Returns the log-probs `[P, K]` of all options under parameters, nats."""
        return option_log_probs(self.lm, params, self.pool)


class Division(NamedTuple):
    """What differs between seeds: who answers and who judges.

    Attributes:
      weights: `[R]`, survey weights of the people who answer; 0 for those who judge.
      judges: the people who judge.
    """

    weights: Array
    judges: Judges


class State(NamedTuple):
    """What a run carries.

    Attributes:
      interaction: the members and the comparisons so far.
      key: a typed key, for all rounds.
      division: of the people.
    """

    interaction: InteractionState
    key: Key
    division: Division


def divisions_of(population: Population) -> Division:
    """Returns the divisions of a population, `[S]` on every leaf."""
    truth, wins = jnp.asarray(population.truth), jnp.asarray(population.wins)
    return Division(jnp.asarray(population.weights), Judges(truth, wins))


def make_process(
    config: Config,
    arm: str,
    population: Population,
    pool: Pool,
    lm: models.LanguageModel,
    params: Params,
) -> Process:
    """Returns the run of one seed of one arm; its input is `(key, Division)`.

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
    study = Study(config, ARMS[arm], population, pool, lm, params)
    return Process(partial(_start, study), partial(_rounds, study))


def _start(study: Study, inputs: tuple[Key, Division]) -> tuple[State, Metrics]:
    key, division = inputs
    init_key, weight_key, run_key = jax.random.split(key, 3)
    state = _interaction(study, num_queries=1).init(init_key)
    num_answers = study.config.prior_answers
    if num_answers:
        prior = prior_comparisons(study.pool, study.log_probs(study.params))
        prior = prior._replace(weight=num_answers * prior.weight)
        weights = _ensemble(study).observation_weights(weight_key, prior.weight.shape)
        state = state._replace(store=training.add_comparisons(state.store, prior, weights))
    return State(state, run_key, division), _evaluate(study, division, state)


def _rounds(study: Study, state: State, first_round: Array, chunk: Chunk) -> tuple[State, Metrics]:
    interaction, metrics = training.run_rounds(
        _interaction(study, chunk.num_queries),
        _rater(study, state.division),
        partial(_evaluate, study, state.division),
        state.interaction,
        state.key,
        num_rounds=chunk.num_rounds,
        first_round=first_round,
    )
    return state._replace(interaction=interaction), metrics


def _interaction(study: Study, num_queries: int) -> training.Interaction:
    config, population = study.config, study.population
    num_answers = int(answers_after(config)[-1]) * len(population.prompts)
    score = partial(_score, study)
    propose = training.pair_proposer(
        partial(_candidates, study), score, study.arm.explore, num_queries=num_queries
    )
    return training.interaction(
        _ensemble(study),
        propose=propose,
        score=score,
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(warm_up(config)),
        capacity=num_prior_comparisons(study.pool) + num_answers,
        num_steps=config.num_steps,
    )


def _candidates(study: Study, key: Key, shared: Params, own: Params) -> Query:
    """Returns all options of one prompt, drawn by how often people are asked about it."""
    del shared
    valid = study.pool.valid
    log_asked = jnp.log(jnp.asarray(study.population.asked))
    drawn = jax.random.categorical(key, log_asked, shape=(study.config.prompts_compared,))
    prompt = drawn[0]
    if study.arm.picks_prompt:
        best = _best_pair_gain(jax.vmap(study.log_probs)(own), valid)
        prompt = drawn[jnp.argmax(best[drawn])]
    items = jnp.arange(valid.shape[1])  # a rater needs the items' numbers alone
    return item_query(items, prompt_id=prompt, valid=valid[prompt])


def _score(study: Study, shared: Params, own: Params, responses: Query) -> Array:
    del shared
    return study.log_probs(own)[responses.prompt_id[..., None], responses.item_ids]


def _rater(study: Study, division: Division) -> Rater:
    answers = jnp.asarray(study.population.answers)
    if answers.ndim == 3:
        return choice.recorded_ranking_rater(answers, division.weights)
    num_items = study.pool.valid.shape[1]
    return choice.recorded_choice_rater(answers, division.weights, num_items=num_items)


def _evaluate(study: Study, division: Division, state: InteractionState) -> Metrics:
    members = jax.vmap(study.log_probs)(state.members.params)
    judged = jnp.asarray(study.population.judged)
    return measures(division.judges, members, study.pool.valid, judged)


def _ensemble(study: Study) -> ensembles.Ensemble:
    """Returns the arm's learner.

    Members are drawn close to the pretrained parameters, because parameters far from them make no
    language model, and then held loosely. What keeps members apart is that each weighs the answers
    and the prior's choices by draws of its own.
    """
    config = study.config
    if study.arm.learner == "map":
        return ensembles.point_estimate(study.lm, study.params, prior_scale=config.prior_scale)
    drawn = ensembles.anchored(
        study.lm, study.params, num_members=config.num_members, prior_scale=config.member_scale
    )
    return drawn._replace(
        penalty=lambda own, anchor: ensembles.anchor_penalty(own, anchor, config.prior_scale)
    )


def _best_pair_gain(members: Array, valid: Array) -> Array:
    """Returns `[P]`, the largest information gain of a pair of each prompt, from [M, P, K]."""
    gains = jax.vmap(exploration.information_gain, in_axes=1)(jnp.where(valid, members, 0.0))
    pairs = valid[:, :, None] & valid[:, None, :]
    return jnp.max(gains, axis=(1, 2), where=pairs, initial=0.0)
