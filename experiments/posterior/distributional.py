"""Objectives that read the target's log-probs: f-DPG, GDC, and fine-tuning on exact samples."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.posterior.base import (
    Method,
    Setup,
    Trainable,
    draw_documents,
    draw_from_policy,
    policy,
    policy_tokens,
)
from experiments.posterior.problem import Problem
from shatter import inference, losses
from shatter.types import Array, Key, Params

KL_MEMORY = 0.9  # weight of the past in the moving averages that judge GDC's proposal
MAX_TRIES = 64  # proposals of rejection sampling for one document


class Evidence(NamedTuple):
    """The running mean of the weights P / q over all batches so far, which estimates Z.

    Attributes:
      z: `[]`, the mean.
      num_batches: `[]`, the number of batches.
    """

    z: Array
    num_batches: Array

    @property
    def log_z(self) -> Array:
        """The log of Z, at least log 1e-6: no sample may have had mass yet."""
        return jnp.log(jnp.maximum(self.z, 1e-6))


def _no_evidence() -> Evidence:
    return Evidence(jnp.zeros(()), jnp.zeros(()))


def _updated(evidence: Evidence, log_weights: Array) -> Evidence:
    """Returns the evidence with one more batch of log weights `[B]`."""
    estimate = jnp.mean(jnp.exp(log_weights))
    z = evidence.z + (estimate - evidence.z) / (evidence.num_batches + 1)
    return Evidence(z, evidence.num_batches + 1)


class FdpgBatch(NamedTuple):
    """Samples of the policy as indices `[B]`, and the evidence with them."""

    indices: Array
    evidence: Evidence


def fdpg(slope: Callable[[Array], Array]) -> Method:
    """Returns on-policy f-DPG for the divergence with this slope."""
    return Method(
        _draw_fdpg, partial(_fdpg_loss, slope), _start_fdpg, _remember_evidence, by_target=True
    )


def _start_fdpg(problem: Problem) -> tuple[Trainable, Evidence]:
    return Trainable(problem.params), _no_evidence()


def _draw_fdpg(
    setup: Setup, problem: Problem, trainable: Trainable, evidence: Evidence, key: Key
) -> FdpgBatch:
    indices = draw_from_policy(setup, problem, trainable, evidence, key)
    log_probs = policy(setup.world, trainable.policy)[indices]
    return FdpgBatch(indices, _updated(evidence, problem.log_target[indices] - log_probs))


def _fdpg_loss(
    slope: Callable[[Array], Array],
    setup: Setup,
    problem: Problem,
    trainable: Trainable,
    batch: FdpgBatch,
) -> Array:
    log_probs = policy(setup.world, trainable.policy)[batch.indices]
    target = problem.log_target[batch.indices]
    return jnp.mean(losses.fdpg_loss(log_probs, target, slope=slope, log_z=batch.evidence.log_z))


def _remember_evidence(
    setup: Setup, problem: Problem, trainable: Trainable, memory: Evidence, batch: FdpgBatch
) -> Evidence:
    del setup, problem, trainable, memory
    return batch.evidence


class Proposal(NamedTuple):
    """GDC's proposal and what it is judged by.

    Attributes:
      params: of the proposal q.
      evidence: of the samples of all proposals.
      proposal_kl: `[]`, moving average of the estimated KL(p* || q), nats.
      policy_kl: `[]`, moving average of the estimated KL(p* || pi), nats.
    """

    params: Params
    evidence: Evidence
    proposal_kl: Array
    policy_kl: Array


class GdcBatch(NamedTuple):
    """Samples of the proposal as indices, their log-probs under it, `[B]`, and the evidence."""

    indices: Array
    log_proposal: Array
    evidence: Evidence


def _start_gdc(problem: Problem) -> tuple[Trainable, Proposal]:
    proposal = Proposal(problem.params, _no_evidence(), jnp.zeros(()), jnp.zeros(()))
    return Trainable(problem.params), proposal


def _draw_gdc(
    setup: Setup, problem: Problem, trainable: Trainable, proposal: Proposal, key: Key
) -> GdcBatch:
    del trainable
    log_proposal = policy(setup.world, proposal.params)
    indices = draw_documents(key, log_proposal, setup.batch_size)
    log_weights = problem.log_target[indices] - log_proposal[indices]
    return GdcBatch(indices, log_proposal[indices], _updated(proposal.evidence, log_weights))


def _gdc_loss(setup: Setup, problem: Problem, trainable: Trainable, batch: GdcBatch) -> Array:
    log_probs = policy(setup.world, trainable.policy)[batch.indices]
    target, log_z = problem.log_target[batch.indices], batch.evidence.log_z
    return jnp.mean(losses.gdc_loss(log_probs, target, batch.log_proposal, log_z=log_z))


def _adapt_gdc(
    setup: Setup, problem: Problem, trainable: Trainable, proposal: Proposal, batch: GdcBatch
) -> Proposal:
    """Returns the proposal, replaced by the policy where that is closer to the target."""
    target = problem.log_target[batch.indices]
    log_probs = policy(setup.world, trainable.policy)[batch.indices]
    has_mass = inference.effective_sample_size(target - batch.log_proposal) > 0
    memory = jnp.where(proposal.evidence.num_batches > 0, KL_MEMORY, 0.0)

    def average(past: Array, log_probs: Array) -> Array:
        kl = memory * past
        kl += (1 - memory) * inference.importance_kl(target, log_probs, batch.log_proposal)
        return jnp.where(has_mass, kl, past)

    proposal_kl = average(proposal.proposal_kl, batch.log_proposal)
    policy_kl = average(proposal.policy_kl, log_probs)
    params = losses.adapt_proposal(
        proposal.params, trainable.policy, proposal_kl=proposal_kl, policy_kl=policy_kl
    )
    return Proposal(params, batch.evidence, jnp.minimum(proposal_kl, policy_kl), policy_kl)


class Demonstrations(NamedTuple):
    """What rejection sampling of the target gave: indices `[B]`, and which were accepted."""

    indices: Array
    accepted: Array


def _draw_demonstrations(
    setup: Setup, problem: Problem, trainable: Trainable, memory: Any, key: Key
) -> Demonstrations:
    """Draws documents of the target by proposing from the pretrained model."""
    del trainable, memory
    log_weights = problem.log_target - problem.log_p0

    def one_document(key: Key) -> inference.Rejection:
        return inference.rejection_sample(
            key,
            lambda key: jax.random.categorical(key, problem.log_p0),
            lambda index: log_weights[index],
            log_bound=jnp.max(log_weights),
            max_tries=MAX_TRIES,
        )

    drawn = jax.vmap(one_document)(jax.random.split(key, setup.batch_size))
    return Demonstrations(drawn.sample, drawn.accepted)


def _demonstration_loss(
    setup: Setup, problem: Problem, trainable: Trainable, batch: Demonstrations
) -> Array:
    del problem
    token_log_probs = policy_tokens(setup.world, trainable.policy)[batch.indices]
    mask = setup.world.space[1][batch.indices] & batch.accepted[:, None]
    return jnp.mean(losses.sft_loss(token_log_probs, mask))


GDC = Method(_draw_gdc, _gdc_loss, _start_gdc, _adapt_gdc, by_target=True)
REJECTION_SFT = Method(_draw_demonstrations, _demonstration_loss, by_target=True)
