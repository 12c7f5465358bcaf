"""Rollouts of a policy in an environment of pure functions, inside one scan."""

from collections.abc import Callable

from shatter.environments.base import Environment, State, Transcript
from shatter.environments.episode import Limits, play
from shatter.environments.policies import model_policy, sampling_law, scripted_policy
from shatter.environments.texts import Tokens
from shatter.models import LanguageModel
from shatter.types import Array, Key, Params


def rollout(
    lm: LanguageModel,
    params: Params,
    key: Key,
    environment: Environment,
    *,
    max_turns: int,
    max_action_length: int,
    max_length: int,
    end_of_action: int,
    temperature: float | Array = 1.0,
    top_k: int | None = None,
    top_p: float | Array | None = None,
) -> Transcript:
    """Draws one episode: the model writes actions token by token, the environment answers.

    One scan has a step for every token of the transcript, read or written, so that episodes of
    different lengths share a program without padding inside of them. It uses the model's cache if
    it has one. Write it for one key and lift it by `jax.vmap`; once the episodes of all lanes have
    ended, nothing is computed any more.

    An action ends with `end_of_action`, or is cut after `max_action_length` tokens and counted as
    invalid; the environment answers it all the same. A turn begins only where the observation
    before it and a whole action fit into `max_length`. An episode ends when the environment says
    so, after `max_turns` actions, or when no further turn fits.

    Args:
      lm: the language model.
      params: its parameters.
      key: a typed key.
      environment: the environment, in the model's tokens.
      max_turns: the largest number of actions.
      max_action_length: A, the largest number of tokens of an action, its end token included.
      max_length: T, the largest number of tokens of the transcript.
      end_of_action: the token that ends an action.
      temperature: divides the logits of every token, > 0.
      top_k: only the k likeliest tokens are drawn; None = all. 1 is greedy, with log-probs of 0.
      top_p: of these, only the smallest set of tokens with this mass, 0 < top_p <= 1; None = all.

    Returns:
      The transcript.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: if a limit is not positive, if the first observation leaves no room for an action
        in `max_length`, if the model cannot take `max_length` tokens, if `end_of_action` is no
        token, or if what `environment.step` returns has wrong shapes or types. An empty first
        observation and a reward that is not finite raise only under checkify where they are traced.
    """
    law = sampling_law(temperature, top_k, top_p)
    policy = model_policy(lm, params, law, end_of_action)
    limits = Limits(max_turns, max_action_length, max_length, end_of_action)
    return play(policy, key, environment, limits)


def scripted_rollout(
    expert: Callable[[Key, State], Tokens],
    key: Key,
    environment: Environment,
    *,
    max_turns: int,
    max_action_length: int,
    max_length: int,
    end_of_action: int,
) -> Transcript:
    """Plays one episode by a script, by the rules of `rollout`.

    Its transcripts are demonstrations: train on them under `is_action`, as on a model's own.

    Args:
      expert: `(key, state) -> action`. It may read all of the environment's state, and a missing
        end token is added.
      key: a typed key.
      environment: the environment.
      max_turns: the largest number of actions.
      max_action_length: the largest number of tokens of an action, its end token included.
      max_length: T, the largest number of tokens of the transcript.
      end_of_action: the token that ends an action.

    Returns:
      The transcript, with log-probs of 0.

    Raises:
      AssertionError: if the shapes or types do not fit.
      ValueError: as `rollout`.
    """
    policy = scripted_policy(expert, end_of_action)
    limits = Limits(max_turns, max_action_length, max_length, end_of_action)
    return play(policy, key, environment, limits)
