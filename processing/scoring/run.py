"""
The run of `aligngpt score`: this process's share of a corpus is read, prepared in workers, scored, and written in
parts that are there whole or not at all.
"""

import os
from importlib.metadata import version
from typing import Any

import datasets
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.sources import Shard, open_corpus

from .arguments import ScoreArguments
from .folder import ScoreFolder
from .parts import describe_rows, is_done, output_features, read_batches, share_out, write_part
from .scorer import AlignmentScorer


def score_corpus(
    args: ScoreArguments, dataset: datasets.Dataset | datasets.IterableDataset | None = None
) -> dict[str, Any] | None:
    """
    Scores this process's share of a corpus; `dataset` instead of `args.data` if given.

    Returns:
        The report, as in `score_report.json`; None if parts of other processes are still missing.

    Raises:
        Fault: with `on_error="fail"`, for the first pair that cannot be scored; the message names it.
        ValueError: if the output folder holds parts of another run, or paths of images have no image folder.
        FloatingPointError: if a score is not finite; the message names the pair.
    """
    _check(args)
    # Without cpu=True, processes that find no GPU would not know of each other, and all score everything
    state = PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    try:
        scorer = AlignmentScorer(args.scorer, args.scorer_revision, args.device or state.device, args.dtype)
    except TypeError as error:  # another kind of model: the argument's mistake
        raise ValueError(str(error)) from error
    shards = open_corpus(
        args.data if dataset is None else dataset,
        split=args.split,
        config_name=args.config_name,
        revision=args.data_revision,
        streaming=args.streaming,
        image_column=args.image_column,
        text_column=args.text_column,
    )
    has_images_inside = any(shard.embedded_images for shard in shards)
    rows_per_part = args.rows_per_part or (512 if has_images_inside else 4096)
    folder = ScoreFolder(args.output_dir)
    folder.claim(_describe_run(args, scorer, shards) | {"rows_per_part": rows_per_part})
    batch_size, num_workers = _choose_speed(args, scorer.device)
    shares = share_out(len(shards), state.process_index, state.num_processes)
    done = folder.parts()
    if args.retry_missing:
        done -= folder.parts_to_retry(("missing", "unreadable"))
    shares = {shard: share for shard, share in shares.items() if not is_done(shard, share, done, folder)}
    features = output_features(has_images_inside)

    batches = (
        (batch, batch.samples)
        for shard, share in shares.items()
        for batch in read_batches(shard, shards[shard], share, done, rows_per_part, batch_size)
    )
    rows, scores, listed = [], [], 0
    with _progress_bar(shares, shards, done, folder, state) as progress:
        for batch, prepared in scorer.prepare(batches, args.image_folder, num_workers):
            if rows and batch.part != rows[0]["part"]:
                write_part(folder, rows, torch.cat(scores).tolist(), features)
                rows, scores = [], []
            if batch.part is None:
                folder.end_shard(batch.shard, batch.start)
                continue
            # Left on the device until the part is written: nothing waits for a batch's scores
            scores.append(scorer.score_batch(prepared))
            described = describe_rows(batch, prepared["pairs"], shards[batch.shard].name, features, args.keep_images)
            faulty = [row for row in described if "fault" in row]
            if faulty and args.on_error == "fail":
                raise Fault(faulty[0]["fault"].kind, "Row {row} of {shard}, {id}: {fault}".format(**faulty[0]))
            rows += described
            listed += len(faulty)
            progress.set_postfix(listed=listed, refresh=False)
            progress.update(len(batch.samples))
    return folder.write_report()


def _check(args: ScoreArguments) -> None:
    if args.image_folder is not None and not os.path.isdir(args.image_folder):
        raise ValueError(f"There is no image folder {args.image_folder!r}.")
    for name in ("rows_per_part", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name} is {value}; it has to be at least 1.")


def _describe_run(args: ScoreArguments, scorer: AlignmentScorer, shards: list[Shard]) -> dict[str, Any]:
    """What scores depend on: a folder is continued only by a run that agrees in all but what is told beside."""
    return {
        # A folder is known by the hash of its weights, wherever it is
        "scorer": os.path.basename(os.path.abspath(args.scorer)) if os.path.isdir(args.scorer) else args.scorer,
        "scorer_revision": scorer.revision,
        "dtype": str(scorer.model.dtype).removeprefix("torch."),
        "keep_images": args.keep_images,
        "columns": [args.image_column, args.text_column],
        "shards": [[shard.name, shard.fingerprint] for shard in shards],
        # Another machine may see the images elsewhere
        "beside": {
            "image_folder": args.image_folder and os.path.abspath(args.image_folder),
            "versions": {name: version(name) for name in ("pillow", "torch", "transformers")},
        },
    }


def _choose_speed(args: ScoreArguments, device: torch.device) -> tuple[int, int]:
    """Batch size and number of worker processes."""
    on_gpu = device.type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # A GPU leaves this process little to do; on a CPU the model wants half of the cores
    workers = cores // torch.cuda.device_count() - 1 if on_gpu else cores // 2
    return (
        args.batch_size or (128 if on_gpu else 16),
        min(16, max(1, workers)) if args.num_workers is None else args.num_workers,
    )


def _progress_bar(
    shares: dict[int, tuple[int, int]], shards: list[Shard], done: set, folder: ScoreFolder, state: PartialState
) -> tqdm:
    """Rate and time left of this process's share; the first process of a machine shows its own."""
    total, before = 0, 0
    for shard, (first, step) in shares.items() if state.is_local_main_process else ():
        rows = shards[shard].count_rows()
        if rows is None or total is None:
            total = None  # not known before it is read: the bar shows a rate only
            continue
        size = folder.run["rows_per_part"]
        sizes = {part: min(size, rows - part * size) for part in folder.parts_of(rows)[first::step]}
        total += sum(sizes.values())
        before += sum(size for part, size in sizes.items() if (shard, part) in done)
    of = f" ({state.process_index + 1} of {state.num_processes})" if state.num_processes > 1 else ""
    return tqdm(
        total=total,
        initial=before,
        desc=f"Scoring{of}",
        unit="pair",
        disable=not state.is_local_main_process,
    )
