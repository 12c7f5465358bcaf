"""The optimiser of a run."""

import optax

from shatter.cli.finetune.config import Config


def make_schedule(config: Config, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step of the optimiser.

    Args:
      config: the config.
      num_steps: steps of the whole run.
    """
    warmup = round(config.warmup_ratio * num_steps)
    rate, num_after = config.learning_rate, max(num_steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "linear": optax.linear_schedule(rate, 0.0, num_after),
        "cosine": optax.cosine_decay_schedule(rate, num_after),
    }[config.lr_scheduler_type]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns AdamW after clipping of the gradient's global norm.

    The updates of ppo's value head are scaled to a learning rate of their own.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            schedule,
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        ),
    )
    if config.objective != "ppo":
        return adamw
    ratio = config.vf_learning_rate / config.learning_rate
    scale = lambda updates, params: updates._replace(head=ratio * updates.head)
    return optax.chain(adamw, optax.stateless(scale))
