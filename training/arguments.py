"""Arguments of the training scripts: TRL's own and what AlignGPT's stages add; and recipes by name."""

import dataclasses
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from trl import SFTConfig


@dataclass
class DataArguments:
    """What to train on; see `aligngpt.training.data.load_training_data` for the formats."""

    data: str = field(
        metadata={
            "help": "Records: JSON, JSON Lines or parquet file(s), a folder or Hub id that datasets loads, or the "
            "folder that `aligngpt levels` wrote."
        }
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "Records to evaluate the loss on: at the end, or as eval_strategy says."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub."})
    eval_split: str = field(default="train", metadata={"help": "Split of a data set on the Hub to evaluate on."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})
    image_column: str | None = field(default=None, metadata={"help": "Field of the images, if not image or images."})
    text_column: str | None = field(
        default=None, metadata={"help": "Field of the captions, if not messages, conversations, caption or text."}
    )
    interleaved: bool = field(
        default=False,
        metadata={"help": "Stage 2: leave images where they stand in a message instead of writing them first."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the files while training instead of caching their rows first."}
    )
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Rows among which streamed ones are shuffled."})
    on_error: Literal["fail", "skip"] = field(
        default="fail",
        metadata={"help": "What to do with broken images and unusable records; skipped ones are counted and logged."},
    )
    check: bool = field(
        default=False, metadata={"help": "Go through the data once, report what cannot be trained on, and stop."}
    )

    def reading_options(self) -> dict[str, Any]:
        """What `aligngpt.training.data.load_training_data` has to know, beside the data and what to do with faults."""
        return {
            "split": self.train_split,
            "config_name": self.dataset_config,
            "streaming": self.streaming,
            "image_column": self.image_column,
            "text_column": self.text_column,
            "interleaved": self.interleaved,
        }


@dataclass
class ComposeArguments:
    """Parts of a new model; not needed beside a composed checkpoint as `model`."""

    vision: str | None = field(default=None, metadata={"help": "The vision tower, e.g. a CLIP."})
    text: str | None = field(default=None, metadata={"help": "The language model, e.g. Vicuna."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Packaged template that fits the LLM; told from its tokenizer."}
    )
    num_alignment_levels: int | None = field(
        default=None, metadata={"help": "N, the number of alignment embeddings of a new model; 8."}
    )


@dataclass
class AblationArguments:
    """
    How stage 2 mixes the alignment embeddings: the paper's ablations and other gates, as fields of the model's
    configuration; by default as in the checkpoint.
    """

    alignment_mode: Literal["adaptive", "average", "local", "global"] | None = field(
        default=None, metadata={"help": "How the alignment embeddings are mixed."}
    )
    alignment_gate_text: Literal["prompt", "all"] | None = field(
        default=None, metadata={"help": "What the gate reads; `all` includes the answers, as in the authors' code."}
    )
    alignment_gate_query: Literal["mean", "attention"] | None = field(
        default=None, metadata={"help": "How the text becomes the vector that image tokens are compared with."}
    )
    alignment_gate_input: Literal["dot_product", "layer_norm", "cosine", "text"] | None = field(
        default=None, metadata={"help": "What the gate's MLP is given; `dot_product` is the authors' gate."}
    )
    alignment_gate_temperature: float | None = field(
        default=None, metadata={"help": "Divides the gate's logits; 1 is the authors' gate."}
    )
    random_alignment_embeddings: bool = field(
        default=False, metadata={"help": "Draw the alignment embeddings anew, which forgets what stage 1 learnt."}
    )

    def get_config_fields(self) -> dict[str, str | float]:
        """What is given here, as fields of [`~aligngpt.AlignGPTConfig`]."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if name.startswith("alignment_") and value is not None}


@dataclass
class StageConfig(SFTConfig):
    """[`~trl.SFTConfig`] with what AlignGPT's stages add."""

    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the projector, where it is not `learning_rate`."}
    )
    gate_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the alignment gate, where it is not `learning_rate`."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "`latest`: go on from the last whole checkpoint in output_dir, or start if there is none; or the "
            "folder of a checkpoint."
        },
    )
    train_vision_tower: bool = field(default=False, metadata={"help": "Train the vision tower as well."})
    train_alignment_embeddings: bool = field(
        default=False, metadata={"help": "Go on training the alignment embeddings in stage 2."}
    )
    group_by_modality_length: bool = field(
        default=False, metadata={"help": "Batches of rows of about one length, all with or all without images."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.packing or self.padding_free:
            raise ValueError("Rows with images cannot be packed; leave out `packing` and `padding_free`.")


def find_packaged(name: str, folder: str, what: str) -> str:
    """
    The path of a packaged YAML file, by its name, or of a file of the user's; which wins.

    Args:
        name (`str`): path, or name of a packaged file.
        folder (`str`): `recipes` or `accelerate`.
        what (`str`): what such a file is called.

    Raises:
        FileNotFoundError: if it is neither; the message lists the packaged ones.
    """
    packaged = files(__package__).joinpath(folder)
    if Path(name).is_file():
        return name
    if (file := packaged.joinpath(f"{name.removesuffix('.yaml')}.yaml")).is_file():
        return str(file)
    known = sorted(file.name.removesuffix(".yaml") for file in packaged.iterdir())
    raise FileNotFoundError(f"There is no file {name}, and no {what} of that name. There are: {', '.join(known)}.")


def find_recipe(arguments: list[str]) -> list[str]:
    """
    Command-line arguments with `--config NAME` (or `--config=NAME`) of a packaged recipe replaced by its path; a file
    of the same name in the working directory wins.

    Raises:
        FileNotFoundError: if it is neither; the message lists the packaged recipes.
    """
    arguments, found = [*arguments], []
    while arguments:
        argument = arguments.pop(0)
        name, equals, value = argument.partition("=")
        if name != "--config" or not (equals or arguments):
            found.append(argument)
        else:
            found += [name, find_packaged(value if equals else arguments.pop(0), "recipes", "recipe")]
    return found
