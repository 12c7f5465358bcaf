"""The objectives: direct ones on comparisons, and the pipeline of a reward model and a policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.rlhf.config import Config
from experiments.rlhf.domains import Domain, Problem
from shatter import evaluation, losses
from shatter.numerics import expectation, kl_divergence
from shatter.types import Array, Key

PPO_EPOCHS = 4
VALUE_COEFFICIENT = 0.1
LEAST_SHARE = 1e-3  # of what nobody chose, where its log is needed
ADAPTIVE_HORIZON = 2000.0  # documents, of the adaptive coefficient


class Objective(NamedTuple):
    """What is trained how, and where it ends.

    Attributes:
      networks: how many are held in training.
      knows_beta: whether beta matters.
      optimum: `(problem, beta) -> [P, D]`, log-probs of the law that enough comparisons lead to;
        None = no closed form.
      loss: a direct objective's, `(config, problem, log_probs[P, D], batch, beta) -> []`, the batch
        indices of comparisons; None = a pipeline.
      policy: whether the pipeline trains a policy; without one it is the exact posterior.
      adaptive: whether the pipeline's beta is steered.
      share: of the comparisons that are learned from.
    """

    networks: int
    knows_beta: bool
    optimum: Callable[[Problem, Array], Array] | None
    loss: Callable[[Config, Problem, Array, Array, Array], Array] | None = None
    policy: bool = True
    adaptive: bool = False
    share: float = 1.0


def _population(problem: Problem, beta: Array) -> Array:
    del beta
    return problem.log_q


def _tempered(problem: Problem, beta: Array) -> Array:
    return evaluation.dpo_optimum(problem.log_p0, problem.log_q, beta=beta)


def _ipo_end(problem: Problem, beta: Array) -> Array:
    end = lambda log_p0, log_q: evaluation.ipo_optimum(log_p0, log_q, beta=beta)
    return jax.vmap(end)(problem.log_p0, problem.log_q)


def _compared(problem: Problem, log_probs: Array, batch: Array) -> tuple[Array, Array]:
    """Log-probs of the chosen and of the rejected document of every comparison."""
    prompts = problem.prompts[batch]
    return log_probs[prompts, problem.chosen[batch]], log_probs[prompts, problem.rejected[batch]]


def _ilhf(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    del beta
    pair = jnp.stack(_compared(problem, log_probs, batch), axis=-1)
    loss = losses.ilhf_loss(pair, jnp.zeros(batch.shape, int))
    kl = jnp.mean(kl_divergence(problem.log_p0, log_probs))
    return jnp.mean(loss) + config.ilhf_lambda / config.num_comparisons * kl


def _dpo(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    of = (*_compared(problem, log_probs, batch), *_compared(problem, problem.log_p0, batch))
    return jnp.mean(losses.dpo_loss(*of, beta=beta))


def _ipo(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    of = (*_compared(problem, log_probs, batch), *_compared(problem, problem.log_p0, batch))
    return jnp.mean(losses.ipo_loss(*of, beta=beta))


def _slic(config: Config, problem: Problem, log_probs: Array, batch: Array, beta: Array) -> Array:
    """With the cross-entropy towards samples of p0, here in expectation."""
    del beta
    hinge = losses.slic_loss(*_compared(problem, log_probs, batch), delta=config.slic_delta)
    kl = jnp.mean(kl_divergence(problem.log_p0, log_probs))  # the cross-entropy less a constant
    return jnp.mean(hinge) + config.slic_regulariser * kl


OBJECTIVES = {
    "ilhf": Objective(2, False, _population, _ilhf),
    "rlhf": Objective(4, True, _tempered),
    "rlhf_adaptive": Objective(4, False, None, adaptive=True),
    "rm_posterior": Objective(2, True, _tempered, policy=False),
    "rm_posterior_few": Objective(2, True, _tempered, policy=False, share=1 / 16),
    "dpo": Objective(2, True, _tempered, _dpo),
    "ipo": Objective(2, True, _ipo_end, _ipo),
    "slic": Objective(2, False, None, _slic),
}


def reward_loss(problem: Problem, rewards: Array, batch: Array) -> Array:
    """Of a reward model that is a table `[P, D]`, one scalar a document."""
    pair = jnp.stack(_compared(problem, rewards, batch), axis=-1)
    return jnp.mean(losses.reward_model_loss(pair, jnp.zeros(batch.shape, int)))


class Rollout(NamedTuple):
    """Samples of the policy, whole responses as actions, `[B]` each.

    Attributes:
      prompts: int.
      responses: int.
      log_probs: as drawn, nats.
      advantages: whitened.
      targets: of the value function.
      kl: estimate of KL(policy || pretrained), `[]`.
    """

    prompts: Array
    responses: Array
    log_probs: Array
    advantages: Array
    targets: Array
    kl: Array


def roll_out(
    key: Key, problem: Problem, log_probs: Array, values: Array, rewards: Array, beta: Array,
    batch_size: int,
) -> Rollout:  # fmt: skip
    """Draws responses to uniform prompts, and their advantages under the learned reward.

    Args:
      key: a typed key.
      problem: the problem.
      log_probs: `[P, D]`, of the policy.
      values: `[P]`, of every prompt.
      rewards: `[P, D]`, learned.
      beta: `[]`, KL coefficient.
      batch_size: B.

    Returns:
      The samples.
    """
    prompt_key, response_key = jax.random.split(key)
    prompts = jax.random.randint(prompt_key, (batch_size,), 0, len(log_probs))
    responses = jax.random.categorical(response_key, log_probs[prompts])
    drawn = log_probs[prompts, responses]
    ref = problem.log_p0[prompts, responses]
    one_token = jnp.ones((batch_size, 1), bool)
    scores = rewards[prompts, responses]
    penalised = losses.kl_penalised_rewards(
        drawn[:, None], ref[:, None], scores, one_token, beta=beta
    )
    expected = values[prompts][:, None]
    advantages = losses.generalised_advantages(penalised, expected, one_token)
    return Rollout(
        prompts,
        responses,
        drawn,
        losses.whiten(advantages, one_token)[:, 0],
        (advantages + expected)[:, 0],
        jnp.mean(drawn - ref),
    )


def policy_loss(log_probs: Array, values: Array, rollout: Rollout) -> Array:
    """PPO's clipped surrogate with the value loss.

    Args:
      log_probs: `[P, D]`, of the policy.
      values: `[P]`.
      rollout: the samples.

    Returns:
      `[]`.
    """
    one_token = jnp.ones((len(rollout.prompts), 1), bool)
    now = log_probs[rollout.prompts, rollout.responses][:, None]
    surrogate = losses.ppo_loss(
        now, rollout.log_probs[:, None], rollout.advantages[:, None], one_token
    )
    value = losses.value_loss(values[rollout.prompts][:, None], rollout.targets[:, None], one_token)
    return jnp.mean(surrogate + VALUE_COEFFICIENT * value)


def measures(
    domain: Domain, problem: Problem, log_probs: Array, optimum: Array | None
) -> dict[str, Array]:
    """Exact measures of a law over the documents of every prompt, means over prompts.

    Args:
      domain: the domain.
      problem: the problem.
      log_probs: `[P, D]`, log pi, nats.
      optimum: `[P, D]`, where the objective should end, or None.

    Returns:
      "kl" = KL(q || pi), "total_variation", "entropy", "log_score" = E_q log pi, "win_rate" against
      the pretrained model, "gold_reward" = E_pi log q with shares of at least 0.001,
      "kl_from_pretrained" = KL(pi || p0), "optimum_kl" = KL(optimum || pi), "kl_NAME" by segment.
    """
    metrics = jax.vmap(evaluation.prediction_metrics)(log_probs, problem.log_p0, problem.log_q)
    metrics["gold_reward"] = expectation(log_probs, gold_rewards(problem))
    metrics["kl_from_pretrained"] = kl_divergence(log_probs, problem.log_p0)
    if optimum is not None:
        metrics["optimum_kl"] = kl_divergence(optimum, log_probs)
    for name, segment in zip(domain.segments, problem.segments, strict=True):
        metrics[f"kl_{name}"] = kl_divergence(segment, log_probs)
    return {name: jnp.mean(values) for name, values in metrics.items()}


def gold_rewards(problem: Problem) -> Array:
    """The population's own reward, log q, `[P, D]`; nobody's choice counts as one in 1,000."""
    return jnp.maximum(problem.log_q, jnp.log(LEAST_SHARE))


def over_optimisation(problem: Problem, rewards: Array, betas: Array) -> dict[str, Array]:
    """What the exact posterior of a learned reward is worth as beta falls, `[N]` each.

    Args:
      problem: the problem.
      rewards: `[P, D]`, learned.
      betas: `[N]`.

    Returns:
      "kl_curve" = KL(p* || p0), "gold_curve" = E_p* log q, "learned_curve" = E_p* of the learned
      reward, means over prompts.
    """

    def one(beta: Array) -> Any:
        law = evaluation.posterior_optimum(problem.log_p0, rewards, beta=beta)[0]
        return {
            "kl_curve": jnp.mean(kl_divergence(law, problem.log_p0)),
            "gold_curve": jnp.mean(expectation(law, gold_rewards(problem))),
            "learned_curve": jnp.mean(expectation(law, rewards)),
        }

    return jax.lax.map(one, betas)
