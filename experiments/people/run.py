"""`python -m experiments.people.run`: what people answer to new questions, from a frozen model.

README.md in this folder has the claim, the results and the cost.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.common.intervals import format_interval, mean_interval
from experiments.common.sources import attribution, digest, model_folder
from experiments.people import plot
from experiments.people.config import Config, check
from experiments.people.inputs import make_inputs
from experiments.people.polls import draw_questions, load_poll
from experiments.people.process import run_seed
from shatter.cli.common import binary, run_folder
from shatter.cli.common.frozen import load_frozen, weights_hash
from shatter.cli.common.progress import open_console, progress_bar

FREE = ("run_dir", "data_dir")


def experiment(config: Config) -> None:
    """Runs every division, then writes and prints the tables and the figure."""
    check(config)
    console = open_console()
    poll = load_poll(config.dataset, data_dir=config.data_dir)
    poll = draw_questions(poll, config.max_questions, np.random.default_rng(config.seed))
    model = load_frozen(model_folder(config.model_name_or_path, config.data_dir))
    folder_name = f"{config.run_dir}/{config.dataset}"
    facts = {"data_sha256": digest(poll), "weights": weights_hash(model.params)}
    with run_folder.open_run_folder(folder_name, config, free=FREE, **facts) as folder:
        began = time.perf_counter()
        found = []
        with progress_bar(console, config.num_seeds) as advance:
            advance("the frozen model's features", 0)
            inputs = make_inputs(config, poll, model)
            for seed in range(config.seed, config.seed + config.num_seeds):
                file = folder / "seeds" / f"seed{seed}.json"
                if not file.exists():
                    run_folder.write_json(file, run_seed(config, poll, inputs, seed))
                found.append(run_folder.read_json(file))
                advance(f"division {seed}", 1)
        summary = _summarise([seed["measures"] for seed in found])
        run_folder.write_json(folder / "summary.json", summary)
        rows = [
            (config.dataset, name.split("/")[0], "", config.seed + n, 0, name, f"{value:.8g}")
            for n, seed in enumerate(found)
            for name, value in seed["measures"].items()
        ]
        run_folder.write_csv(folder / "metrics.csv", rows)
        bins = {method: [seed["bins"][method] for seed in found] for method in found[0]["bins"]}
        plot.draw(config, summary, bins, folder / "people.png")
        for table in tables(config, summary):
            console.print(table)
        console.print(f"{time.perf_counter() - began:.0f} s. Results in {Path(folder)}")
        console.print(f"Data: {attribution(config.dataset)}")


def _summarise(found: list[dict[str, float]]) -> dict[str, Any]:
    """Returns means over the divisions, and what the model's features are worth over n-grams.

    Divisions differ more than methods do, so the difference is taken division by division.
    """
    shared = [name for name in found[0] if all(name in seed for seed in found)]
    summary = {name: mean_interval(np.array([seed[name] for seed in found])) for name in shared}
    for name in shared:
        method, measure = name.split("/")
        if method == "head":
            less = np.array([seed[name] - seed[f"ngrams/{measure}"] for seed in found])
            summary[f"head less ngrams/{measure}"] = mean_interval(less)
        if measure.startswith("log_loss_") and "persons/log_loss_0" in shared:
            gain = np.array([seed["persons/log_loss_0"] - seed[name] for seed in found])
            summary[f"persons/gain_{measure.removeprefix('log_loss_')}"] = mean_interval(gain)
    if "persons/blind_log_loss_0" in shared:
        blind, told = "persons/blind_log_loss_0", "persons/log_loss_0"
        summary["persons/gain_group"] = mean_interval(
            np.array([seed[blind] - seed[told] for seed in found])
        )
    return summary


def tables(config: Config, summary: dict[str, Any]) -> list[Table]:
    """Returns the table of shares and that of persons."""
    shares = Table(
        title=f"{config.dataset}, new questions: means over {config.num_seeds} divisions [95%]",
        caption="KL(people's shares || model) in nats; floor: the KL of samples of as many people "
        "if the head were exactly right",
    )
    for title in ("method", "KL, everybody", "KL, each group", "calibration error of shares"):
        shares.add_column(title, justify="left" if title == "method" else "right")
    for method in dict.fromkeys(name.split("/")[0] for name in summary if "persons" not in name):
        values = [summary.get(f"{method}/{m}") for m in ("kl", "group_kl", "calibration_error")]
        shares.add_row(method, *map(format_interval, values))
    persons = Table(title="log-loss of a person's answer to a new question, nats")
    persons.add_column("known answers of the person")
    persons.add_column("head", justify="right")
    persons.add_column("saved by them", justify="right")
    names = {f"persons/log_loss_{n}": str(n) for n in config.numbers_of_answers}
    names |= {
        "persons/blind_log_loss_0": "0, without the group",
        "persons/uniform_log_loss": "uniform",
    }
    for name, title in names.items():
        if name in summary:
            gain = summary.get(f"persons/gain_{title}")
            persons.add_row(title, format_interval(summary[name]), format_interval(gain))
    return [shares, persons]


if __name__ == "__main__":
    binary.main(Config, experiment)
