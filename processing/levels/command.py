"""
Cuts the scores of a corpus into alignment levels: the data of stage 1, how it was cut, and two pictures to look at.

    aligngpt levels scores --output_dir levels
    aligngpt levels scores --output_dir levels_4 --num_levels 4 --rule equal-width
    aligngpt levels new_scores --output_dir new_levels --apply levels/alignment_levels.json

The output folder holds parquet files that `aligngpt pretrain` takes as `--data` (or one JSON of LLaVA's form with
`--to llava-json`), `alignment_levels.json`, `levels.png` and `samples.png`. It is there whole or not at all.
Instead of scores, a LLaVA JSON is taken whose records have levels (`alignment_level`, or the authors' `similarity`),
which are kept unless a rule is named, or scores (`alignment_score`).
"""

import logging
import os

from aligngpt.processing.command_line import parse_command

from .arguments import LevelArguments


logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """The command `aligngpt levels`."""
    args = parse_command(LevelArguments, arguments, "levels", __doc__, first="data", new_output=True)
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from .cutting import cut_corpus

    cuts, summary = cut_corpus(args)
    table = Table("level", "pairs", "lowest", "mean", "highest score", title=f"{cuts.count} pairs, {cuts.rule}")
    for level, (count, lowest, mean, highest) in enumerate(summary.rows()):
        scores = (f"{value:.4f}" if np.isfinite(value) else "" for value in (lowest, mean, highest))
        table.add_row(str(level), str(count), *scores)
    Console().print(table)
    if args.min_level:
        left_out = int(summary.counts[: args.min_level].sum())
        logger.info("Left out: %d pairs of levels below %d.", left_out, args.min_level)
    drawn = os.path.isfile(os.path.join(args.output_dir, "samples.png"))
    logger.info("Written to %s%s.", args.output_dir, "; look at levels.png and samples.png there" if drawn else "")
