"""What the command `aligngpt score` can be told."""

from dataclasses import dataclass, field
from typing import Literal


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
        default=True,
        metadata={
            "help": "Images that the data hold as bytes are copied into the output, where training needs them; with "
            "--no_keep_images they are not."
        },
    )
