"""What an algorithm that learns from choices holds and does."""

from typing import Literal


def cost(
    kind: Literal["pipeline", "ilhf", "dpo"],
    *,
    members: int,
    particles: int,
    answer_steps: int,
    policy_steps: int,
    candidates: int,
    step_samples: int,
) -> dict[str, int]:
    """Returns what an algorithm holds and does in a run of one seed.

    Args:
      kind: a "pipeline" of reward model and policy, or one model by "ilhf" or "dpo".
      members: of ILHF's ensemble.
      particles: heads of a pipeline's reward model beside the one that rewards.
      answer_steps: gradient steps on answers, of each member or head.
      policy_steps: of a pipeline's policy, of all its trainings.
      candidates: documents among which the queries of all rounds are chosen.
      step_samples: documents that a policy draws for a step.

    Returns:
      "models": language models in memory, pretrained and moving averages among them; "heads": of
      the reward model; "answer_steps": of all members and heads together; "policy_steps";
      "samples": documents drawn from a model, candidates among them.
    """
    if kind == "pipeline":  # the policy, its anchor and the pretrained model
        models, heads, learners = 3, 1 + particles, 1 + particles
    else:  # the pretrained model too, as the centre of the prior or the reference
        learners = members if kind == "ilhf" else 1
        models, heads, policy_steps = 1 + learners, 0, 0
    return {
        "models": models,
        "heads": heads,
        "answer_steps": learners * answer_steps,
        "policy_steps": policy_steps,
        "samples": candidates + policy_steps * step_samples,
    }
