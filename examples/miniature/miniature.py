"""
The method, rerun at a size that fits a laptop: does stage 1 learn what a level means, do alignment embeddings help,
does the gate adapt? Some hours on two CPU cores for all of it; it goes on where it was stopped, and what is in the
results folder is never repeated.

    make miniature                                              what is missing, then the report
    python examples/miniature/miniature.py --only aligngpt      the runs of one method, then the report
    python examples/miniature/miniature.py --repeat aligngpt-0  one run again, beside what the results say

Results are JSON files, one per run. Models and parts stay in the output folder.
"""

import argparse
import json
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aligngpt.processing.atomic_output import replacing


sys.path.append(str(Path(__file__).parents[1]))  # for tiny/, which the experiment shares with the demo

from experiments import METHODS, SIZES, STAGES_1, Size  # noqa: E402
from findings import compare_runs, write_report  # noqa: E402
from parts import make_parts, summarise_scores  # noqa: E402
from run import run_job  # noqa: E402


HERE = Path(__file__).parent


def list_jobs(results: Path, output: Path, only: list[str] | None, seeds: list[int]) -> tuple[list, list]:
    """What has no results yet: stages 1, and stages 2. A stage 1 is needed for its model, too."""
    stage2 = [
        (method, seed)
        for method in METHODS
        for seed in method.seeds
        if seed in seeds and _is_wanted(method.name, only) and not (results / f"{method.name}-{seed}.json").exists()
    ]
    needed = {(method.stage1, seed) for method, seed in stage2}
    used = {(method.stage1, seed) for method in METHODS for seed in method.seeds if seed in seeds}
    stage1 = [
        (STAGES_1[name], seed)
        for name, seed in sorted(used, key=lambda pair: pair[::-1])
        if ((name, seed) in needed and not (output / "stage1" / f"{name}-{seed}" / "config.json").exists())
        or (_is_wanted(f"stage1-{name}", only) and not (results / f"stage1-{name}-{seed}.json").exists())
    ]
    return stage1, sorted(stage2, key=lambda pair: pair[1])


def _is_wanted(name: str, only: list[str] | None) -> bool:
    return only is None or name in only


def run_jobs(jobs: list, results: Path, output: Path, size: Size, workers: int) -> None:
    """Runs jobs, `workers` at a time, each in a process of its own, and writes a file for each."""
    # A thread per run: two runs side by side are faster than one with two threads. The server has all imported once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["run"])
    with context.Pool(workers, maxtasksperchild=1) as pool:
        arguments = [(spec, seed, output, size) for spec, seed in jobs]
        for result in tqdm(pool.imap_unordered(run_job, arguments), total=len(jobs), desc="runs"):
            name = result.get("method") or f"stage1-{result['stage1']}"
            path = results / f"{name}-{result['seed']}.json"
            if not path.exists():  # a stage 1 may be trained again for its model alone
                write_compact_json(path, result)


def write_compact_json(path: Path, value: dict) -> None:
    """Writes JSON with four digits to a number and a line to a list of numbers: small files, readable differences."""
    text = json.dumps(_round(value), indent=1)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _round(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_round(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Parts, runs and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--output_dir", type=Path, default=HERE.parents[1] / "miniature_output")
    parser.add_argument("--results_dir", type=Path, default=None, help="of the full size: beside this file")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="+", default=None, help="methods, or stage1-NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--repeat", default=None, help="a run to do again, e.g. aligngpt-0 or stage1-aligngpt-0")
    parser.add_argument("--size", choices=SIZES, default="full", help="smoke: two steps on a few pictures")
    args = parser.parse_args()
    is_full = args.size == "full"
    output = args.output_dir.resolve() if is_full else args.output_dir.resolve() / args.size
    recorded = results = (args.results_dir or (HERE / "results" if is_full else output / "results")).resolve()
    if args.repeat is not None:
        results = output / "repeated"
        name, _, seed = args.repeat.rpartition("-")
        args.only, args.seeds = [name], [int(seed)]
        (results / f"{args.repeat}.json").unlink(missing_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    stage1, stage2 = list_jobs(results, output, args.only, args.seeds)
    if stage1 or stage2:
        data = make_parts(output, SIZES[args.size])
        if not (results / "scores.json").exists():
            write_compact_json(results / "scores.json", summarise_scores(data, output))
        for jobs in (stage1, stage2):
            run_jobs(jobs, results, output, SIZES[args.size], args.workers)
    if args.repeat is not None:
        compare_runs(args.repeat, recorded, results)
    elif is_full:
        write_report(results, HERE)


if __name__ == "__main__":
    main()
