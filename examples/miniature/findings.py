"""
Writes report.md and its pictures from the results files, and nothing that is not in them. Of two methods only those
differences are called differences whose 95% interval over seeds leaves out 0; the sentences that say so are made of
the numbers.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from experiments import ABLATIONS, CHOSEN, LEVELS, MAIN, SEARCH, SEEDS, Method
from language import ONE_REGION_TASKS, TASKS, WHOLE_IMAGE_TASKS
from rich.console import Console


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


SATURATED = 0.95  # a task that LLaVA does so well has no room for anything to help
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5% quantiles of the t distribution, by the number of seeds


class Results:
    """The results files of a folder, by method (or stage 1) and seed."""

    def __init__(self, folder: Path):
        self.scores = json.loads((folder / "scores.json").read_text())
        self.runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))}

    def of(self, name: str) -> list[dict]:
        """The runs of a method, by seed; those of a stage 1 are named "stage1-NAME"."""
        return [run for key, run in self.runs.items() if key.rpartition("-")[0] == name]

    def present(self, methods: tuple[Method, ...]) -> list[Method]:
        """Those that all seeds of are there."""
        return [method for method in methods if len(self.of(method.name)) == len(method.seeds)]

    def scores_of(self, name: str, field: str = "tasks") -> pd.DataFrame:
        """Scores of a method, a row per seed and a column per task."""
        rows = {run["seed"]: {task: run[field][task]["score"] for task in TASKS} for run in self.of(name)}
        return pd.DataFrame.from_dict(rows, orient="index").sort_index()

    def mean_scores(self, tasks: list[str]) -> dict[str, pd.Series]:
        """Of every method that was judged on the test split: the mean of some tasks, by seed."""
        methods = self.present((*MAIN, *ABLATIONS, *CHOSEN))
        return {method.name: self.scores_of(method.name)[tasks].mean(axis=1) for method in methods}

    @property
    def open_tasks(self) -> list[str]:
        """The tasks that LLaVA has not saturated, on the validation split."""
        means = self.scores_of("llava", "validation_tasks").mean()
        return [task for task in TASKS if means[task] < SATURATED]


def spread(values, digits: int = 3) -> str:
    """ "mean ± standard deviation" of a number of each run."""
    values = np.asarray(values, dtype=float)
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def table(rows: list[dict]) -> str:
    """A Markdown table; columns are the keys of the rows."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(map(str, columns)) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows])


def difference(first: pd.Series, second: pd.Series) -> str:
    """The mean of two methods' differences, seed by seed, its 95% interval over seeds, and what that says."""
    both = (first - second).dropna()
    if len(both) < 2:
        return f"{both.mean():+.3f} (one seed)"
    margin = STUDENT[len(both)] * both.std(ddof=1) / math.sqrt(len(both))
    verdict = "a difference" if abs(both.mean()) > margin else "no difference told"
    return f"{both.mean():+.3f} ± {margin:.3f} ({verdict}; {(both > 0).sum()} of {len(both)} seeds above 0)"


def rank_correlation(values: list[float]) -> float:
    """Of values with their place in the list."""
    return pd.DataFrame({"place": range(len(values)), "value": values}).corr("spearman").iloc[0, 1]


def separation(run: dict) -> tuple[float, float]:
    """
    How far the gate's mean weights of the tasks differ: their standard deviation between tasks, and the same in parts
    of the spread over the questions of one task. All are roots of the variance's mean over the weights; from the first
    the part is taken by which means differ by chance. A second number above 1 says that the task tells more about the
    weights than all else does, picture and wording; it says nothing where the first one is small.
    """
    means = np.array([run["tasks"][task]["weights"] for task in TASKS])
    within = np.array([run["tasks"][task]["weights_spread"] for task in TASKS]) ** 2
    counts = np.array([[run["tasks"][task]["count"]] for task in TASKS])
    between = max(means.var(0, ddof=1).mean() - (within / counts).mean(), 0)
    return math.sqrt(between), math.sqrt(between / max(within.mean(), 1e-12))


def separations(results: Results, method: Method) -> dict[str, str]:
    """Both numbers of `separation` over a method's seeds."""
    pairs = np.array([separation(run) for run in results.of(method.name)])
    return {"between tasks": spread(pairs[:, 0]), "in parts of the spread within": spread(pairs[:, 1], 2)}


def summarise(results: Results) -> str:
    """The findings in a sentence each, made of the numbers."""
    tasks, runs = results.open_tasks, results.of("stage1-aligngpt")
    means = results.mean_scores(tasks)
    lowest = {
        measure: min(rank_correlation([level[measure] for level in run["levels"]]) for run in runs)
        for measure in ("similarity", "precision")
    }
    fixed = [
        [np.mean([scores[task] for task in tasks]) for level, scores in run["fixed_levels"].items() if level != "gate"]
        for run in results.of("aligngpt")
    ]
    sentences = [
        f"""The level asked for steers stage 1: the rank correlation with it is at least {lowest["similarity"]:.2f} for
  the similarity of captions and {lowest["precision"]:.2f} for their precision, in every seed.""",
        f"""Mean of the open tasks, AlignGPT - LLaVA: {difference(means["aligngpt"], means["llava"])}; AlignGPT - LLaVA
  with one learnt token: {difference(means["aligngpt"], means["token"])}.""",
    ]
    others = {"average": "average of the local embeddings", "aligngpt": "equation 2's", "llava": "LLaVA"}
    for chosen in results.present(CHOSEN):
        old, new = (" and ".join(separations(results, method).values()) for method in (MAIN[-1], chosen))
        gains = [
            f"chosen gate - {title} {difference(means[chosen.name], means[name])}"
            for name, title in others.items()
            if name in means
        ]
        sentences += [
            f"""Standard deviation of the gate's mean weights between tasks, and in parts of their spread within a
  task: {old} with the gate of equation 2; {new} with the gate that the search chose ({chosen.title}).""",
            "What that buys on the open tasks: " + ";\n  ".join(gains) + ".",
        ]
    best, llava = (
        spread([run["levels"][-1]["precision"] for run in results.of(f"stage1-{name}")], 2)
        for name in ("aligngpt", "llava")
    )
    all_levels = spread([max(row) - min(row) for row in fixed])
    upper_levels = spread([max(row[LEVELS // 2 :]) - min(row[LEVELS // 2 :]) for row in fixed])
    sentences.append(
        f"""After stage 1 the facts of captions are true in {best} of the cases at AlignGPT's best level, in {llava}
  with LLaVA. After stage 2 a level still matters: between the best and the worst fixed level lie {all_levels} of the
  mean score of the open tasks. But between the best and the worst of the upper half of the levels lie
  {upper_levels}, and the global embedding is always among what the gate mixes."""
    )
    return "## In short\n\n" + "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def report_scores(results: Results, folder: Path) -> str:
    """Similarity against true quality (the paper's Figures 2 and 3)."""
    scores = results.scores
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    edges = np.array(scores["edges"])
    left.bar(edges[:-1], scores["counts"], np.diff(edges), align="edge", color="0.7")
    for cut in scores["cut_points"]:
        left.axvline(cut, color="tab:red", linewidth=0.8)
    left.set(xlabel="CLIP similarity (lines: cut points)", ylabel="pairs")
    right.plot((edges[:-1] + edges[1:]) / 2, [np.nan if q is None else q for q in scores["quality"]])
    right.set(xlabel="CLIP similarity", ylabel="mean true quality (F1 of facts)")
    save(figure, folder / "scores.png")
    qualities = table([{"level": "mean true quality"} | dict(enumerate(scores["quality_of_levels"]))])
    return f"""## 1. What the scorer sees

The tiny CLIP's similarity and the true quality of a caption, which nothing but this report reads, have a rank
correlation of {scores["rank_correlation"]:.2f} over {sum(scores["counts"])} pairs.

{qualities}

![Histogram of similarity with cut points; true quality by similarity](scores.png)
"""


def report_level_control(results: Results, folder: Path) -> str:
    """Captions of stage 1 against the level that was asked for."""
    runs = {name: results.of(f"stage1-{name}") for name in ("aligngpt", "random_levels")}
    measures = ("similarity", "precision", "f1", "facts")
    levels = [
        {"level": level}
        | {measure: spread([run["levels"][level][measure] for run in runs["aligngpt"]]) for measure in measures}
        for level in range(LEVELS)
    ]
    correlations = []
    for name, title in (("aligngpt", "CLIP's levels"), ("random_levels", "random levels")):
        for run in runs[name]:
            values = {m: [level[m] for level in run["levels"]] for m in ("similarity", "precision", "f1")}
            row = {"stage 1": f"{title}, seed {run['seed']}"}
            row |= {m: f"{rank_correlation(v):.2f}" for m, v in values.items()}
            correlations.append(
                row | {"precision, best - worst": f"{values['precision'][-1] - values['precision'][0]:+.2f}"}
            )
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, measure in zip(axes, ("similarity", "precision"), strict=True):
        for name, colour in (("aligngpt", "tab:blue"), ("random_levels", "0.7")):
            for run in runs[name]:
                axis.plot([level[measure] for level in run["levels"]], color=colour, marker=".")
        axis.set(xlabel="level asked for", ylabel=measure)
    figure.suptitle("blue: CLIP's levels; grey: random levels; a line per seed", fontsize=9)
    save(figure, folder / "levels.png")
    best = {
        "AlignGPT at its best level": [run["levels"][-1] for run in runs["aligngpt"]],
        "LLaVA": [run["levels"][0] for run in results.of("stage1-llava")],
        "LLaVA and one learnt token": [run["levels"][-1] for run in results.of("stage1-token")],
    }
    beside = [
        {"after stage 1": title} | {measure: spread([row[measure] for row in rows]) for measure in measures}
        for title, rows in best.items()
    ]
    first = runs["aligngpt"][0]["levels"]
    captions = [{"level": i, "first test picture, seed 0": level["captions"][0]} for i, level in enumerate(first)]
    return f"""## 2. What a level does to a caption

Stage 1 describes test pictures at each level. Similarity is that of the scoring CLIP; precision is the share of all
stated facts that are true; F1 also counts what is left out, and rewards length.

{table(levels)}

Rank correlation with the level asked for:

{table(correlations)}

![Similarity and precision by level](levels.png)

{table(captions)}

The same pictures, captioned by models of the same budget without levels:

{table(beside)}
"""


def score_row(results: Results, method: Method, tasks: list[str]) -> dict:
    """A method's means and spreads."""
    scores = results.scores_of(method.name)
    groups = {
        "open tasks": tasks,
        "whole image": [task for task in WHOLE_IMAGE_TASKS if task in tasks],
        "one region": [task for task in ONE_REGION_TASKS if task in tasks],
        "all tasks": list(TASKS),
    }
    return {"model": method.title, "seeds": len(scores)} | {
        title: spread(scores[group].mean(axis=1)) for title, group in groups.items() if group
    }


def report_answers(results: Results, folder: Path) -> str:
    """The main comparison and the ablations."""
    tasks, methods, ablations = results.open_tasks, results.present((*MAIN, *CHOSEN)), results.present(ABLATIONS)
    by_task = [
        {"task": task, "most frequent": f"{results.of('llava')[0]['tasks'][task]['majority']:.2f}"}
        | {method.title: spread(results.scores_of(method.name)[task]) for method in methods}
        for task in TASKS
    ]
    saturated = ", ".join(task for task in TASKS if task not in tasks) or "none"
    means = results.mean_scores(tasks)
    pairs = [("aligngpt", "llava"), ("aligngpt", "token"), ("token", "llava")]
    pairs += [(method.name, other) for method in CHOSEN for other in ("llava", "aligngpt", "average")]
    pairs += [("aligngpt", method.name) for method in ABLATIONS]
    pairs = [pair for pair in pairs if means.keys() >= set(pair)]
    comparisons = [
        {"open tasks": f"{first} - {second}", "same seeds": difference(means[first], means[second])}
        for first, second in pairs
    ]
    by_seed = [
        {"model": method.title} | {f"seed {seed}": f"{mean:.3f}" for seed, mean in means[method.name].items()}
        for method in methods
    ]
    return f"""## 3. Answers about pictures with combinations that no training picture had

Test split; exact answers, and the F1 of the facts for "describe". Open are the tasks that LLaVA solves in less than
{SATURATED:.0%} of the cases of the validation split at this budget; saturated: {saturated}. "Most frequent" is the
share of the answer that is right most often.

{table(by_task)}

{table([score_row(results, method, tasks) for method in (*methods, *ablations)])}

Open tasks, each seed:

{table(by_seed)}

Differences; "±" is here half of the 95% interval over seeds (all answer the same test questions; of {len(pairs)}
comparisons one in twenty would leave out 0 by chance):

{table(comparisons)}
"""


def diagnose(results: Results, method: Method, when: str) -> dict:
    """Means over seeds of what `measure_gate` measured before or after stage 2."""
    measured = pd.DataFrame([run[f"gate_{when}"] for run in results.of(method.name)]).mean()
    return {
        "variant": f"{method.title}, {when} stage 2",
        "input between tasks": f"{measured['input_between_tasks']:.3g}",
        "within": f"{measured['input_within_tasks']:.3g}",
        "ratio": f"{measured['input_between_tasks'] / measured['input_within_tasks']:.2f}",
        "gradient": f"{measured['gradient_gate']:.1e}",
        "of the projector": f"{measured['gradient_projector']:.1e}",
        "agreement": f"{measured['gradient_agreement']:.2f}",
        "local embeddings": f"{measured['local_spread']:.2f}",
    }


def report_gate(results: Results, folder: Path) -> str:
    """Whether the gate adapts, why not, and what it buys."""
    tasks = results.open_tasks
    search = []
    for method in results.present(SEARCH):
        runs = results.of(method.name)
        largest = [np.mean([max(run["tasks"][task]["weights"]) for task in TASKS]) for run in runs]
        scores = {"open tasks": spread(results.scores_of(method.name)[tasks].mean(axis=1))}
        row = {"gate": method.title} | scores | separations(results, method)
        search.append(row | {"largest mean weight": spread(largest, 2)})
    shown = results.present((MAIN[-1], *CHOSEN))
    rows = {method.name: diagnose(results, method, "before") | row for method, row in zip(SEARCH, search, strict=True)}
    ratio = {name: row["ratio"] for name, row in rows.items()}
    largest = {name: row["largest mean weight"] for name, row in rows.items()}
    weights = [
        {"gate": method.title, "task": task}
        | {f"{i}": f"{weight:.2f}" for i, weight in enumerate(results.of(method.name)[0]["tasks"][task]["weights"])}
        for method in shown
        for task in TASKS
    ]
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 3.6), layout="constrained", squeeze=False)
    for axis, method in zip(axes[0], shown, strict=True):
        run = results.of(method.name)[0]
        image = axis.imshow([run["tasks"][task]["weights"] for task in TASKS], vmin=0, vmax=1, cmap="Blues")
        axis.set_yticks(range(len(TASKS)), TASKS)
        axis.set_xlabel("local embedding")
        axis.set_title(f"{method.title}\nseed {run['seed']}", fontsize=9)
    figure.colorbar(image, ax=axes[0].tolist())
    save(figure, folder / "gate.png")
    return f"""## 4. The gate

"Between tasks" is the standard deviation of the tasks' mean weights, also given in parts of the weights' spread over
the questions of one task. The search was listed in `experiments.py` before it ran, after six single runs on the same
validation split that are described there: {len(SEARCH)} variants, {len(SEEDS)} seeds each. A
gate's learning rate is given in parts of stage 2's. On the validation split:

{table(search)}

What the gate's MLP is given, and how it is pulled (means over seeds; root mean squares of gradients; agreement: cosine
of the gate's gradients on questions about two halves of the pictures; local embeddings: their distance from their
mean, in parts of the global one's length):

{table([diagnose(results, method, when) for method in results.present(SEARCH) for when in ("before", "after")])}

So equation 2's gate cannot tell tasks apart well: its inputs differ between tasks by {ratio["gate_authors"]} of what
they differ within one, from picture to picture. Layer norm over the image tokens takes even that away
({ratio["gate_layer_norm"]}), since what a question shifts, it shifts for all tokens alike; the text alone has
{ratio["gate_text"]}. And the gate's rate must be low: the first steps pull all questions towards the same embedding
(see agreement), and a gate that follows them at the full rate ends there (largest mean weight {largest["gate_text"]}
at stage 2's rate, {largest["gate_text_slow"]} at a tenth of it), where its gradient vanishes.

On the test split:

{table([{"gate": method.title} | separations(results, method) for method in shown])}

Mean weights of the local embeddings, first seed:

{table(weights)}

![Mean weights per task](gate.png)
"""


def report_fixed_levels(results: Results, folder: Path) -> str:
    """What a fixed level does to answers (the paper's Figure 7)."""
    runs = results.of("aligngpt")
    rows = [
        {"task": task}
        | {level: spread([run["fixed_levels"][level][task] for run in runs], 2) for level in runs[0]["fixed_levels"]}
        for task in TASKS
    ]
    return f"""## 5. A fixed level instead of the gate

Scores of AlignGPT on the first test pictures, by the gate and if every question is asked at one level ({len(runs)}
seeds):

{table(rows)}
"""


def report_leak(results: Results, folder: Path) -> str:
    """What happens if the gate reads the answers in training."""
    rows, seeds = [], list(SEEDS)
    for method in results.present((MAIN[-1], *(m for m in ABLATIONS if m.name == "text_all"))):
        train = results.scores_of(method.name, "train_tasks").mean(axis=1).loc[seeds]
        test = results.scores_of(method.name).mean(axis=1).loc[seeds]
        measured = [run["gate_after"] for run in results.of(method.name) if run["seed"] in seeds]
        rows.append(
            {
                "gate": method.title,
                "training pictures": spread(train),
                "test pictures": spread(test),
                "gap": spread(train - test),
                "loss: prompt - answer too": spread(
                    [row["loss_reading_prompt"] - row["loss_reading_all"] for row in measured], 4
                ),
            }
        )
    return f"""## 6. Does the answer leak through the gate?

The authors' gate reads the answer in training and cannot at inference. Scores on all tasks, on questions about 100
training pictures (of stage 1; stage 2 saw four in ten of them, with some of these questions) and about test pictures,
which have new combinations besides: only the difference of the two gaps tells of the gate. Then, on validation
questions with their answers, how much lower the loss is if the gate may read the answer. Seeds {seeds}.

{table(rows)}
"""


def save(figure, path: Path) -> None:
    """Saves and forgets a picture."""
    figure.savefig(path, dpi=100)
    plt.close(figure)


SECTIONS: tuple[Callable[[Results, Path], str], ...] = (
    report_scores,
    report_level_control,
    report_answers,
    report_gate,
    report_fixed_levels,
    report_leak,
)


def write_report(results_dir: Path, folder: Path) -> None:
    """report.md and its pictures into `folder`, from all runs in `results_dir`; nothing before the main comparison."""
    results = Results(results_dir)
    if len(results.present(MAIN)) < len(MAIN):
        Console().print("The main comparison is not complete: no report yet.")
        return
    introduction = Path(__file__).with_name("introduction.md").read_text(encoding="utf-8")
    missing = [m.title for m in (*MAIN, *ABLATIONS, *SEARCH, *CHOSEN) if m not in results.present((m,))]
    if missing:
        introduction += f"\n**Not complete.** Seeds are missing of: {', '.join(missing)}.\n"
    sections = [section(results, folder) for section in SECTIONS]
    (folder / "report.md").write_text("\n".join([introduction, summarise(results), *sections]), encoding="utf-8")


def compare_runs(name: str, results_dir: Path, repeated_dir: Path) -> None:
    """Prints a repeated run beside the recorded one and the spread over the seeds of its method."""
    method = name.rpartition("-")[0]
    recorded, repeated = Results(results_dir), Results(repeated_dir)

    def read(run: dict) -> pd.Series:
        if "levels" in run:
            return pd.Series({f"precision, level {i}": row["precision"] for i, row in enumerate(run["levels"])})
        if "tasks" in run:
            return pd.Series({task: run["tasks"][task]["score"] for task in TASKS})
        return pd.Series({"training loss": run["train_loss"]})

    rows = pd.DataFrame({run["seed"]: read(run) for run in recorded.of(method)})
    comparison = pd.DataFrame({"recorded": read(recorded.runs[name]), "repeated": read(repeated.runs[name])})
    comparison["spread over seeds"] = rows.std(axis=1)
    comparison.loc["mean"] = [*comparison[["recorded", "repeated"]].mean(), rows.mean().std()]
    Console().print(comparison.round(3).to_string())
