"""Arguments of the training scripts beside TRL's own, and recipes by name."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path


@dataclass
class DataArguments:
    """What to train on; see `aligngpt.training.data.load_training_data` for the formats."""

    train_file: str = field(
        metadata={"help": "JSON, JSONL or parquet file with the records, or the folder that `aligngpt levels` wrote."}
    )
    image_folder: str | None = field(default=None, metadata={"help": "Folder that relative image paths start from."})


@dataclass
class ComposeArguments:
    """Parts of a new model. Give both, or neither and a composed checkpoint as `model_name_or_path`."""

    vision_model_name_or_path: str | None = field(default=None, metadata={"help": "The vision tower, e.g. a CLIP."})
    text_model_name_or_path: str | None = field(default=None, metadata={"help": "The language model, e.g. Vicuna."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Packaged template that fits the LLM; told from its tokenizer."}
    )
    num_alignment_levels: int = field(default=8, metadata={"help": "N, the number of alignment embeddings."})


def find_recipe(arguments: list[str]) -> list[str]:
    """
    Command-line arguments with `--config NAME` of a packaged recipe replaced by its path; a file of the same name in
    the working directory wins.

    Raises:
        FileNotFoundError: if it is neither; the message lists the packaged recipes.
    """
    arguments = list(arguments)
    if "--config" in arguments[:-1]:
        position = arguments.index("--config") + 1
        name, recipes = arguments[position], files(__package__).joinpath("recipes")
        if not Path(name).is_file():
            if not (recipe := recipes.joinpath(f"{name.removesuffix('.yaml')}.yaml")).is_file():
                known = sorted(file.name.removesuffix(".yaml") for file in recipes.iterdir())
                raise FileNotFoundError(f"There is no file {name} and no recipe of that name. Recipes: {known}.")
            arguments[position] = str(recipe)
    return arguments
