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

from aligngpt.processing.command_line import parse_command

from .arguments import ScoreArguments


logger = logging.getLogger(__name__)


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
