"""The flags of `shatter label`, a dataclass for each subcommand."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from shatter import exploration
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.learners import Kind, Setting, Utility
from shatter.types import Array

EXAMPLE = (
    "shatter label propose --model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct --pool=pool.jsonl "
    "--project=runs/label"
)

ArmName = Literal[
    "random",
    "boltzmann",
    "thompson",
    "double_thompson",
    "infomax",
    "variance",
    "joint_infomax",
]


@dataclasses.dataclass(frozen=True)
class Project:
    """What a labelling project is about; the same in every call.

    Attributes are flags; see their texts.
    """

    project: str = "runs/label"
    """Project folder: queries, answers, the ensemble, metrics."""

    pool: str = ""
    """Required. File of prompts with candidate completions, JSON lines: {"prompt", "completions"};
    or of prompts only: candidates are then sampled from the pretrained model. Files of preferences
    are pools too."""

    eval_files: tuple[str, ...] = ()
    """Files of preferences held out to judge by."""

    model_name_or_path: str = ""
    """Required. Folder with config.json, model.safetensors and tokenizer.json, or a name on the
    Hugging Face hub."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    chat_template: str | None = None
    """File with a jinja chat template, where pool or answers are conversations and the tokenizer
    has none."""

    template_date: str | None = None
    """The date that a chat template with a date reads, YYYY-MM-DD with or without THH:MM:SS. The
    time at which the project began if not given, in every later call too."""

    ensemble: Kind = "heads"
    """What represents what is not yet known. heads: linear heads on features of the frozen model;
    epinet: an epinet on them; adapters: low-rank adapters, so that every member is a language
    model."""

    num_members: int = 16
    """Members of the ensemble."""

    prior_scale: float = 0.3
    """Standard deviation of a member's utility of a text before there are answers, nats."""

    utility: Utility = "ratio"
    """adapters: the utility of a text under a member. sum: its log-prob, for responses that the
    model wrote; ratio: a scaled difference of mean log-probs a token from the base, for texts that
    people wrote."""

    utility_scale: float = 10.0
    """adapters with --utility=ratio: nats of utility for a nat a token."""

    lora_r: int = 4
    """adapters: rank."""

    lora_target_modules: tuple[str, ...] = ("query", "value", "mlp_out")
    """adapters: projections with adapters; GPT-2 takes qkv in place of query and value."""

    adapted_layers: int = 1
    """adapters: on how many of the last blocks; what lies below is computed once. 0 = on the last
    one's mlp_out alone (--lora_target_modules mlp_out): members that learn then share the product
    with the vocabulary too, for a table of texts that is 1 + mlp_width / width times as large."""

    learning_rate: float = 0.01
    """Adam's."""

    num_steps: int = 200
    """Adam's steps each time the ensemble learns."""

    batch_size: int = 64
    """Comparisons a step, drawn from all answers."""

    max_length: int = 256
    """Tokens of a prompt with a completion; longer ones are cut."""

    num_samples: int = 4
    """Of a pool of prompts only: candidates sampled a prompt."""

    max_completion_length: int = 64
    """Of a pool of prompts only: tokens of a candidate."""

    seed: int = 0
    """Root of all random keys."""


@dataclasses.dataclass(frozen=True)
class Propose(Project):
    """Choose which comparisons to put to people, and write them down.

    Until somebody has answered, the same call gives the same queries.
    """

    arm: ArmName = "joint_infomax"
    """How queries are chosen; joint_infomax: so that a whole batch tells most about the members."""

    num_queries: int = 20
    """Queries of a batch."""

    num_responses: int = 2
    """Completions a query."""

    num_candidates: int = 2000
    """Queries among which the batch is chosen: all there are, or as many drawn at random."""

    temperature: float = 2.0
    """Of the boltzmann arm."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """Answer the queries that are open, in the terminal or on a local page."""

    project: str = "runs/label"
    """Project folder."""

    annotator: str = "me"
    """Your name; in the terminal."""

    web: bool = False
    """Serve a page on the loopback address; each annotator gives a name there."""

    port: int = 8000
    """Of the page; 0 = any that is free."""

    seed: int = 0
    """Of the order in which the completions of a query are shown."""


@dataclasses.dataclass(frozen=True)
class Learn:
    """Update the ensemble by all answers so far, from where it stands."""

    project: str = "runs/label"
    """Project folder."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Take in answers that were given elsewhere."""

    file: str = ""
    """File of preferences in any layout that `shatter finetune` reads, or the answers.jsonl of
    another project with its folder queries beside it."""

    project: str = "runs/label"
    """Project folder."""

    annotator: str = "import"
    """Whose rows are that name nobody."""

    on_bad_row: Literal["fail", "skip"] = "fail"
    """What a row that cannot be used does: ends the import, or is left out and counted."""


@dataclasses.dataclass(frozen=True)
class Accept:
    """Take answers.jsonl as it is, after it was mended by hand or lines of it were lost.

    Answers that are not in it any more are not learned from any more.
    """

    project: str = "runs/label"
    """Project folder."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write what was learned for other tools."""

    project: str = "runs/label"
    """Project folder."""

    answers: str = ""
    """File (.jsonl) for the answers, as preferences that `shatter finetune` reads."""

    model: str = ""
    """adapters: folder for a model, adapters merged, that other tools load."""

    member: int = -1
    """adapters: which member becomes --model; -1 = the mean of all members' updates."""


ARMS = {
    "random": exploration.uniform_queries,
    "boltzmann": exploration.boltzmann_queries,
    "thompson": exploration.thompson_queries,
    "double_thompson": exploration.double_thompson_queries,
    "infomax": exploration.infomax_queries,
    "variance": exploration.variance_queries,
    "joint_infomax": exploration.joint_infomax_queries,
}
assert tuple(ARMS) == get_args(ArmName)


def explorer(arm: ArmName, temperature: float) -> Callable[..., Array]:
    """Returns the arm of `shatter.exploration` of a name; only boltzmann has a temperature."""
    if arm == "boltzmann":
        return partial(exploration.boltzmann_queries, temperature=temperature)
    return ARMS[arm]


def setting_of(config: Project) -> Setting:
    """Returns what learns, and how."""
    names = [field.name for field in dataclasses.fields(Setting) if field.name != "kind"]
    return Setting(kind=config.ensemble, **{name: getattr(config, name) for name in names})


def project_of(config: Project) -> Project:
    """Returns the project's own flags, without those of a call."""
    names = [field.name for field in dataclasses.fields(Project)]
    return Project(**{name: getattr(config, name) for name in names})


SIZE = binary.whole(1, 2**20)

RANGES = {
    "num_members": binary.whole(2, 2**16),
    "prior_scale": binary.POSITIVE,
    "utility_scale": binary.POSITIVE,
    "lora_r": SIZE,
    "adapted_layers": binary.whole(0),
    "learning_rate": binary.POSITIVE,
    "num_steps": binary.whole(1),
    "batch_size": SIZE,
    "max_length": binary.whole(3, 2**20),
    "num_samples": binary.whole(2, 2**16),
    "max_completion_length": SIZE,
    "seed": binary.whole(0),
    "num_queries": SIZE,
    "num_responses": binary.whole(2, 2**10),
    "num_candidates": SIZE,
    "temperature": binary.POSITIVE,
    "port": binary.whole(0, 2**16 - 1),
    "member": binary.whole(0, other=(-1,)),
}
"""What every flag that is a number may be."""


def check(config: Project) -> None:
    """Refuses values that cannot be.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    binary.check_ranges(config, RANGES)
    for name in ("model_name_or_path", "pool"):
        if not getattr(config, name):
            raise UsageError(f"--{name} is required; for example: {EXAMPLE}")
    if not config.lora_target_modules:
        raise UsageError("--lora_target_modules: expected names of projections, found none")
    if config.template_date is not None:
        binary.date("template_date", config.template_date)
    if isinstance(config, Propose) and config.num_candidates < config.num_queries:
        raise UsageError(
            f"--num_candidates must be at least --num_queries, found {config.num_candidates} "
            f"and {config.num_queries}"
        )
