"""The flags of `shatter label`, one dataclass for each subcommand."""

import dataclasses
from typing import Literal

from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.learners import LAST_MLP_OUT, AdaptedLayers, Kind, Setting, Utility

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
    "v_optimal",
]


@dataclasses.dataclass(frozen=True)
class ProjectConfig:
    """The flags of a labelling project, which are the same in every call.

    Attributes are flags; the text below each one explains it.
    """

    project: str = "runs/label"
    """Project folder, with the queries, the answers, the ensemble and the metrics."""

    pool: str = ""
    """Required. File of prompts with candidate completions, JSON lines: {"prompt", "completions"};
    or of prompts only: candidates are then sampled from the pretrained model. Files of preferences
    are pools too."""

    eval_files: tuple[str, ...] = ()
    """Files of preferences that are held out to measure the ensemble."""

    model_name_or_path: str = ""
    """Required. Folder with config.json, model.safetensors and tokenizer.json, a GGUF file, or a
    name on the Hugging Face hub."""

    model_revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    chat_template: str | None = None
    """File with a jinja chat template, for a pool or answers that are conversations, if the
    tokenizer has none."""

    template_date: str | None = None
    """The date for a chat template that shows the date, YYYY-MM-DD with or without THH:MM:SS. If it
    is not given, the time at which the project began, in every later call too."""

    ensemble: Kind = "heads"
    """What the members are. heads: linear heads on features of the frozen model; epinet: the
    indices of an epinet on the same features; adapters: low-rank adapters, so that every member is
    a language model."""

    num_members: int = 16
    """Members of the ensemble."""

    prior_scale: float = 0.3
    """Standard deviation of a member's utility of a text before there are answers, nats."""

    utility: Utility = "ratio"
    """With adapters: the utility of a text under a member. tilt: its log-prob less the frozen
    model's, where people choose by taste; ratio: `utility_scale` times that a token; sum: its
    log-prob, where they choose a response as often as the model should give it."""

    utility_scale: float = 10.0
    """With adapters and --utility=ratio: nats of utility per nat of log-prob a token."""

    lora_r: int = 4
    """With adapters: their rank."""

    lora_target_modules: tuple[str, ...] = ("query", "value", "mlp_out")
    """With adapters: the projections that have adapters; GPT-2 has qkv in place of query and
    value."""

    adapted_layers: AdaptedLayers = 1
    """With adapters: how many of the last blocks have adapters; the blocks below are computed once.
    last_mlp_out: only the mlp_out of the last block has (with --lora_target_modules mlp_out), so
    that members that learn also share the product with the vocabulary; the table of texts is then
    1 + mlp_width / width times as large."""

    learning_rate: float = 0.01
    """Learning rate of Adam."""

    num_steps: int = 200
    """Steps of Adam each time the ensemble learns."""

    batch_size: int = 64
    """Comparisons per step, drawn from all answers."""

    max_length: int = 256
    """Tokens of a prompt and a completion together; longer ones are cut."""

    num_samples: int = 4
    """With a pool of prompts only: candidates to sample per prompt."""

    max_completion_length: int = 64
    """With a pool of prompts only: tokens of a candidate."""

    seed: int = 0
    """Root of all random keys."""


@dataclasses.dataclass(frozen=True)
class ProposeConfig(ProjectConfig):
    """Choose which comparisons to put to people, and write them to a file.

    Until somebody has answered, the same call gives the same queries.
    """

    arm: ArmName = "v_optimal"
    """How queries are chosen. v_optimal: so that the batch as a whole lowers most the variance of
    all choices in question; joint_infomax: so that it tells most about the members."""

    num_queries: int = 20
    """Queries of a batch."""

    num_responses: int = 2
    """Completions per query."""

    num_candidates: int = 1000
    """Queries among which the batch is chosen: all there are, or as many drawn at random. v_optimal
    takes at most 2,000 texts in all, so at most 1,000 queries of two, and says so."""

    temperature: float = 2.0
    """Temperature of the boltzmann arm."""

    audit_share: float = 0.1
    """Share of the queries that are drawn at random instead, kept apart and never learned from. By
    their answers `learn` says what the loss is and what more labels would bring. 0 = none."""

    least_gain: float = 0.0
    """Nats. If the next batch will probably lower the log-loss by less, this command says so; it
    proposes all the same."""


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """Answer the open queries, in the terminal or on a local page."""

    project: str = "runs/label"
    """Project folder."""

    annotator: str = "me"
    """Your name, if you answer in the terminal."""

    web: bool = False
    """Serve a page on the loopback address; each annotator gives a name there."""

    port: int = 8000
    """Port of the page; 0 = any that is free."""

    seed: int = 0
    """Seed of the order in which the completions of a query are shown."""


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """Update the ensemble by all answers so far, from its present state."""

    project: str = "runs/label"
    """Project folder."""

    until: float | None = None
    """Log-loss a vote on a random pair of the pool, nats. Say how many labels are needed to it."""

    until_share_kl: float | None = None
    """Nats. Say how many labels are needed until this is left of the part of the log-loss that
    labels can take away. It is below the share_kl of the held-out files, which is all of
    KL(people's shares || prediction), also what this learner can never represent."""


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Take in answers that were given elsewhere."""

    file: str = ""
    """Required. File of preferences in any layout that `shatter finetune` reads, or the
    answers.jsonl of another project with its folder queries beside it."""

    project: str = "runs/label"
    """Project folder."""

    annotator: str = "import"
    """The annotator of rows that name nobody."""

    on_bad_row: Literal["fail", "skip"] = "fail"
    """What happens at a row that cannot be used. fail: the import ends and adds nothing; skip: the
    row is left out and counted."""


@dataclasses.dataclass(frozen=True)
class AcceptConfig:
    """Accept answers.jsonl as it is, after it was edited by hand or has lost lines.

    Answers that are no longer in it are no longer learned from.
    """

    project: str = "runs/label"
    """Project folder."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Write the answers, or a model that has learned from them, for other tools."""

    project: str = "runs/label"
    """Project folder."""

    answers: str = ""
    """File (.jsonl) for the answers, as preferences that `shatter finetune` reads."""

    model: str = ""
    """With adapters: folder for a model, adapters merged, that other tools load."""

    member: int = -1
    """With adapters: the member that becomes --model; -1 = the mean of all members' updates."""


def setting_of(config: ProjectConfig) -> Setting:
    """Returns the kind of ensemble and its optimiser settings."""
    names = [field.name for field in dataclasses.fields(Setting) if field.name != "kind"]
    return Setting(kind=config.ensemble, **{name: getattr(config, name) for name in names})


def project_of(config: ProjectConfig) -> ProjectConfig:
    """Returns the project's flags alone, without those of a call."""
    names = [field.name for field in dataclasses.fields(ProjectConfig)]
    return ProjectConfig(**{name: getattr(config, name) for name in names})


SIZE = binary.whole(1, 2**20)

RANGES = {
    "num_members": binary.whole(2, 2**16),
    "prior_scale": binary.POSITIVE,
    "utility_scale": binary.POSITIVE,
    "lora_r": SIZE,
    "adapted_layers": binary.whole(1, other=(LAST_MLP_OUT,)),
    "learning_rate": binary.POSITIVE,
    "num_steps": SIZE,
    "batch_size": SIZE,
    "max_length": binary.whole(3, 2**20),
    "num_samples": binary.whole(2, 2**16),
    "max_completion_length": SIZE,
    "seed": binary.whole(0),
    "num_queries": SIZE,
    "num_responses": binary.whole(2, 2**10),
    "num_candidates": SIZE,
    "temperature": binary.POSITIVE,
    "audit_share": binary.real(0, 0.5),
    "least_gain": binary.real(0),
    "until": binary.POSITIVE._replace(other=(None,)),
    "until_share_kl": binary.POSITIVE._replace(other=(None,)),
    "port": binary.whole(0, 2**16 - 1),
    "member": binary.whole(0, other=(-1,)),
}
"""The values that each numeric flag may take."""


def check(config: ProjectConfig) -> None:
    """Raises an error if a flag has a value that cannot be used.

    Raises:
      UsageError: with the flag's name, what was expected and what was found.
    """
    binary.check_texts(config)
    binary.check_ranges(config, RANGES)
    binary.require(config, ("model_name_or_path", "pool"), EXAMPLE)
    if not config.lora_target_modules:
        raise UsageError("--lora_target_modules: expected names of projections, found none")
    if config.template_date is not None:
        binary.date("template_date", config.template_date)
    is_scaled = config.utility_scale != ProjectConfig.utility_scale
    if is_scaled and config.ensemble == "adapters" and config.utility != "ratio":
        raise UsageError(
            f"--utility_scale={config.utility_scale} belongs to --utility=ratio, found "
            f"--utility={config.utility}: leave --utility_scale out, which nothing reads, or "
            "change --utility"
        )
    if isinstance(config, ProposeConfig) and config.num_candidates < config.num_queries:
        raise UsageError(
            f"--num_candidates must be at least --num_queries, found {config.num_candidates} "
            f"and {config.num_queries}"
        )
