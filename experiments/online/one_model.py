"""One model that is its own reward model: ILHF with an ensemble, and DPO."""

from functools import partial

import jax
import optax

from experiments.online.arms import Arm, Kind, Learner, Speaker, chooser
from experiments.online.config import Utility
from experiments.online.members import (
    make_candidates,
    make_ensemble,
    make_one,
    member_log_probs,
    propose,
    without_hidden,
)
from experiments.online.world import Fixed, Read, World
from shatter import ensembles, losses, training
from shatter.types import Array, Key, Params


def one_model(world: World, fixed: Fixed, arm: Arm) -> Learner:
    """Returns the learner of an arm of ILHF or DPO; its state is an `InteractionState`."""
    config = world.config
    utility = partial(response_utility, world, fixed.params, arm.kind)
    of_all = jax.vmap(utility, in_axes=(0, None))
    is_tilt = config.utility == "tilt"
    choose = chooser(arm, is_tilt=is_tilt, match_lengths=config.match_lengths)
    sources = make_candidates(world, fixed.params, arm.candidates, arm.temperature)

    def ask(key: Key, shared: Params, own: Params, store: training.Store) -> Read:
        del shared, store
        candidates = lambda key, prompt_id: sources(key, own, prompt_id)
        asked = propose(world, fixed, candidates, partial(of_all, own), choose, key)
        return without_hidden(asked) if world.is_closed else asked  # laws are looked up there

    interaction = training.interaction(
        _ensemble(world, fixed, arm.kind),
        propose=ask,  # type: ignore[arg-type]  # a `Read` is kept in the place of a `Query`
        score=lambda shared, own, known: utility(own, known),  # type: ignore[arg-type]
        loss=losses.ilhf_ranking_loss,
        optimizer=optax.adam(config.learning_rate),
        capacity=config.queries_per_round * config.num_rounds,
        num_steps=config.num_steps,
        batch_size=None if world.is_closed else config.batch_size,
    )

    def speaker(state: training.InteractionState) -> Speaker:
        own = state.members.params
        return Speaker(own, partial(of_all, own), state.step)

    return Learner(interaction, speaker)


def response_utility(world: World, params: Params, kind: Kind, own: Params, known: Read) -> Array:
    """Returns the utilities by which one member learns and asks, `[..., N]`, nats.

    Args:
      world: the world.
      params: the base.
      kind: "ilhf", by `--utility`, or "dpo", whose utility is beta log(pi / p0).
      own: the member's adapters.
      known: responses, with any leading axes.

    Returns:
      The utilities.
    """
    log_probs = member_log_probs(world, params, own, known)
    if kind == "dpo":
        return world.config.dpo_beta * (log_probs - known.log_p0)
    utility: Utility = world.config.utility
    return log_probs if utility == "sum" else losses.tilted_utilities(log_probs, known.log_p0)


def _ensemble(world: World, fixed: Fixed, kind: Kind) -> ensembles.Ensemble:
    """Returns the members; DPO's is one, pulled to the base, which weighs all answers alike."""
    if kind == "ilhf":
        return make_ensemble(
            world, fixed.params, fixed.prior_scale, num_members=world.config.num_members
        )
    # Its prior is as wide in utilities as a member's, which are beta times as large.
    scale = fixed.prior_scale / world.config.dpo_beta
    return make_one(world, fixed.params, scale)
