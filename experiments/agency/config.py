"""The config of `experiments.agency.run`."""

import dataclasses

ARMS = ("imitation", "rl", "imitation_rl")


@dataclasses.dataclass(frozen=True)
class Config:
    """Does imitation inject agency, and does RL improve on imitation or on RL alone?

    A small transformer, from scratch, answers questions such as `( 3 + 4 ) * 5 =` with a calculator
    as its tool. A scripted expert of limited quality has given demonstrations. Arms take equally
    many updates of equally many episodes.
    """

    arms: tuple[str, ...] = ARMS
    """Arms to run. imitation: the demonstrations all the way. rl: RLOO on the model's own episodes
    all the way. imitation_rl: imitation first, then RLOO with a KL penalty towards it."""

    run_dir: str = "runs/agency"
    """Run folder; one that exists is resumed, given the same flags, and may get more arms."""

    seed: int = 0
    """Root of all random keys."""

    num_seeds: int = 10
    """Seeds, each with its own demonstrations and its own start; all run in one call an arm."""

    num_operations: int = 2
    """Operations in a question, each a call of the calculator."""

    max_operand: int = 9
    """Operands are drawn from 1 to this number."""

    price: float = 0.05
    """What every action costs, below .5; the right answer earns 1."""

    num_demonstrations: int = 512
    """Episodes of the expert, about questions of the training part."""

    quality: float = 0.8
    """Probability that an action of the expert is no mistake; it solves a question with this to
    the power of its actions."""

    width: int = 32
    """Of the transformer."""

    num_layers: int = 2
    """Of the transformer."""

    num_rounds: int = 16
    """Rounds of updates and a measurement."""

    imitation_rounds: int = 8
    """Rounds of imitation in imitation_rl."""

    updates_per_round: int = 25
    """Adam steps a round."""

    batch_size: int = 64
    """Episodes an update: demonstrations, or questions times samples."""

    num_samples: int = 8
    """Episodes of every question in an update of RL, whose others are the baseline."""

    learning_rate: float = 3e-3
    """Adam's, of imitation and of RL from scratch."""

    rl_rate: float = 5e-4
    """Adam's, of RL after imitation."""

    beta: float = 0.02
    """KL coefficient of RL after imitation."""

    num_evaluated: int = 32
    """Held-out questions at every measurement, of every seed; each is tried --num_tries times."""

    num_tries: int = 4
    """Episodes of a question at a measurement; the best of them is what search finds."""

    chunk_rounds: int = 5
    """Rounds between checkpoints."""
