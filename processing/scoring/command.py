"""
Scores the pairs of a corpus with a dual encoder, on one GPU overnight or on many machines, without losing a pair.

LLaVA's 558K pairs:

    aligngpt score --data blip_laion_cc_sbu_558k.json --image_folder images \
        --scorer openai/clip-vit-large-patch14-336 --output_dir scores

A Hub dataset or webdataset shards, on 8 GPUs of each of several machines:

    accelerate launch --num_processes 8 -m aligngpt score --data "shards/*.tar" --scorer ... --output_dir scores

The output folder holds parquet parts, each of consecutive rows of one shard of the corpus. A part is there whole or
not at all, so after a kill the same command scores what is missing. A process works on parts of its own and waits for
no other. `faults.jsonl` lists every row without a score, `score_report.json` counts them by kind: rows in = scored +
text-only + listed. Next: `aligngpt levels`.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

import datasets
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from aligngpt.processing.command_line import parse_command
from aligngpt.processing.corpus.faults import Fault
from aligngpt.processing.corpus.sources import Shard, open_corpus

from .folder import ScoreFolder
from .parts import describe_rows, is_done, output_features, read_batches, share_out, write_part
from .scorer import AlignmentScorer


logger = logging.getLogger(__name__)


@dataclass
class ScoreArguments:
    """What to score, with which model, how."""

    data: str = field(
        metadata={
            "help": "LLaVA JSON or JSON Lines, webdataset tars, parquet (a file, a glob, a URL), a folder or Hub id "
            "that datasets loads."
        }
    )
    scorer: str = field(metadata={"help": "Dual encoder: Hub id or folder of a CLIP, SigLIP or SigLIP 2."})
    output_dir: str = field(metadata={"help": "Where the parts go. A folder with parts of the same run is continued."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that image paths start from."})
    scorer_revision: str | None = field(default=None, metadata={"help": "Revision of the scorer on the Hub."})
    split: str = field(default="train", metadata={"help": "Split of a dataset."})
    config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset."})
    data_revision: str | None = field(default=None, metadata={"help": "Revision of a dataset on the Hub."})
    streaming: bool = field(default=False, metadata={"help": "Read remote data as it comes instead of downloading."})
    image_column: str | None = field(default=None, metadata={"help": "Column of images, if not image or images."})
    text_column: str | None = field(
        default=None, metadata={"help": "Column of captions, if not messages, conversations, caption or text."}
    )
    retry_missing: bool = field(
        default=False,
        metadata={"help": "Score those parts anew in which images were missing or unreadable."},
    )
    on_error: Literal["skip", "fail"] = field(
        default="skip", metadata={"help": "List a pair that cannot be scored and go on, or stop."}
    )
    batch_size: int | None = field(default=None, metadata={"help": "Pairs a batch; 128 on a GPU, 16 on a CPU."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that decode images; what the CPUs allow, at most 16."}
    )
    device: str | None = field(default=None, metadata={"help": "A GPU if there is one, else cpu."})
    dtype: Literal["float16", "bfloat16", "float32"] | None = field(
        default=None, metadata={"help": "float16 on a GPU, float32 on a CPU."}
    )
    rows_per_part: int | None = field(
        default=None,
        metadata={
            "help": "Rows in an output file, the most that a kill costs a process; 4096, 512 with images inside."
        },
    )
    keep_images: bool = field(
        default=True, metadata={"help": "Copy images that the data holds as bytes into the output, as training needs."}
    )


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
    scorer = AlignmentScorer(args.scorer, args.scorer_revision, args.device or state.device, args.dtype)
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


def main(arguments: list[str] | None = None) -> None:
    """The command `aligngpt score`."""
    args = parse_command(ScoreArguments, arguments, "score", __doc__)
    report = score_corpus(args)
    if report is None:
        logger.info("This process is done; other parts of %s are still missing.", args.output_dir)
        return
    listed = ", ".join(f"{kind} {count}" for kind, count in report["faults"].items())
    logger.info(
        "%d rows: %d scored, %d text-only, %d listed in faults.jsonl%s. Captions cut at the scorer's length: %d.",
        *(report[name] for name in ("rows", "scored", "text_only", "listed")),
        f" ({listed})" if listed else "",
        report["truncated_captions"],
    )
    if report["rows"] and not report["scored"]:
        sys.exit("No pair was scored: are --data, --image_folder, --image_column and --text_column right?")
    if broken := report["faults"].get("broken_shard"):
        logger.warning("%d file(s) could not be read to the end: rows after the break are in no count.", broken)


if __name__ == "__main__":
    main()
