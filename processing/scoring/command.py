r"""
Scores the pairs of a corpus with a dual encoder, on one GPU overnight or on many machines, without losing a pair.

LLaVA's 558K pairs:

    aligngpt score blip_laion_cc_sbu_558k.json --image_folder images \
        --scorer openai/clip-vit-large-patch14-336 --output_dir scores

A Hub dataset or webdataset shards, on 8 GPUs of each of several machines:

    accelerate launch --num_processes 8 -m aligngpt score "shards/*.tar" --scorer ... --output_dir scores

The output folder holds parquet parts, each of consecutive rows of one shard of the corpus. A part is there whole or
not at all, so after a kill the same command scores what is missing. A process works on parts of its own and waits for
no other. `faults.jsonl` lists every row without a score, `score_report.json` counts them by kind: rows in = scored +
text-only + listed. Next: `aligngpt levels`.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

from aligngpt.processing.command_line import parse_command


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


def main(arguments: list[str]) -> None:
    """The command `aligngpt score`."""
    args = parse_command(ScoreArguments, arguments, "score", __doc__, first="data")
    from .run import score_corpus

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
        raise ValueError("No pair was scored: are --data, --image_folder, --image_column and --text_column right?")
    if broken := report["faults"].get("broken_shard"):
        logger.warning("%d file(s) could not be read to the end: rows after the break are in no count.", broken)
    logger.info("Written to %s.", args.output_dir)
