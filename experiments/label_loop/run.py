"""`python -m experiments.label_loop.run`: see README.md beside this file."""

import dataclasses
from pathlib import Path

from experiments.common.sources import model_folder
from experiments.label_loop import coverage, loop, plot
from experiments.label_loop.config import Config, check
from shatter.cli.common import binary
from shatter.cli.common.binary import UsageError
from shatter.cli.common.locks import alone
from shatter.cli.common.progress import open_console, progress_bar
from shatter.cli.label import tables
from shatter.cli.label.display import say
from shatter.cli.label.run import show_forecast


def experiment(config: Config) -> None:
    """Runs the rounds of every seed and prints their measures."""
    check(config)
    config = dataclasses.replace(
        config,
        model_name_or_path=model_folder(config.model_name_or_path, config.data_dir),
        rater_model=_rater_folder(config),
    )
    console = open_console()
    with alone(config.project, "--project"):
        with progress_bar(console, config.num_rounds * config.num_seeds) as advance:
            projects = loop.run(config, advance)
        for project in projects:
            console.print(tables.metrics(project.folder, project.state.history))
            levels = {"until": config.until, "until_share_kl": config.until_share_kl}
            show_forecast(project, console, **levels)
        if len(projects) > 1:
            histories = [project.state.history for project in projects]
            plot.draw(histories, Path(config.project) / "label_loop.png")
        if config.coverage:
            seeds = [coverage.read_rounds(project.folder) for project in projects]
            checks = coverage.checks_of(seeds, config.until)
            title = f"{config.project}: how often the intervals held, {len(projects)} seeds"
            console.print(coverage.table(checks, title))
        say(console, f"Results in {config.project}")


def _rater_folder(config: Config) -> str:
    """Returns the folder of --rater_model."""
    try:
        return model_folder(config.rater_model, config.data_dir)
    except UsageError as error:
        message = str(error).replace("--model_name_or_path", "--rater_model", 1)
        raise UsageError(message) from error


if __name__ == "__main__":
    binary.main(Config, experiment)
