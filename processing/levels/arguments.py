"""What the command `aligngpt levels` can be told."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class LevelArguments:
    """What to cut, and how."""

    data: str = field(
        metadata={"help": "Folder that `aligngpt score` wrote, or LLaVA JSON that has levels as `similarity`."}
    )
    output_dir: str = field(metadata={"help": "Where the data with levels goes; must not be there yet."})
    num_levels: int = field(default=8, metadata={"help": "N."})
    rule: Literal["equal-frequency", "equal-width"] | None = field(
        default=None,
        metadata={
            "help": "Levels of equal size (the paper's ranks; what is done with scores if nothing is said), or of "
            "equal width."
        },
    )
    apply: str | None = field(
        default=None, metadata={"help": "An alignment_levels.json: its cut points, instead of new ones."}
    )
    random: int | None = field(
        default=None, metadata={"help": "Seed of random levels, whatever the scores are: the ablation."}
    )
    min_level: int = field(
        default=0, metadata={"help": "Leave out pairs of lower levels; text-only rows have none and stay."}
    )
    to: Literal["parquet", "llava-json"] = field(default="parquet", metadata={"help": "Form of the output."})
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder of the images, for the sheet of samples; the one they were scored from."},
    )
    samples_per_level: int = field(default=6, metadata={"help": "Pairs of each level in the sheet of samples."})
