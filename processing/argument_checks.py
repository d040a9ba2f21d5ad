"""What can be said about arguments of commands before anything is read or loaded: by their names, for all commands."""

import os
import tempfile
from glob import glob
from pathlib import Path
from typing import Any


MODELS = ("model", "model_name_or_path", "base", "scorer", "vision", "text")
DATA = ("data", "eval_file", "calibration")
FORMATS = {".json", ".jsonl", ".parquet", ".tar", ".tgz", ".csv", ".arrow"}
FILES = ("apply",)
LEVELS = ("num_levels", "num_alignment_levels")


def find_problems(values: dict[str, Any], new_output: bool = False) -> list[str]:
    """
    What is wrong with arguments, a sentence each with the remedy: models, data, files and image folders that are not
    there; outputs that cannot be written, hold something, or are an input; too few levels.

    Args:
        values (`dict`): the arguments by name; None where one is not given.
        new_output (`bool`): whether `output_dir` may not hold anything yet.
    """
    given = {name: value for name, value in values.items() if value is not None}
    checks = dict.fromkeys(MODELS, _check_model) | dict.fromkeys(DATA, _check_data)
    checks |= dict.fromkeys(FILES, _check_file) | dict.fromkeys(LEVELS, _check_levels)
    checks |= {"adapter": _check_adapter, "image_folder": _check_image_folder, "output_file": _check_output_file}
    found = {name: checks[name](value) for name, value in given.items() if name in checks}
    if "output_dir" in given:
        inputs = {name: given[name] for name in (*MODELS, *DATA, "adapter", "image_folder") if name in given}
        found["output_dir"] = _check_output_dir(given["output_dir"], inputs, new_output)
    # As it is written: TRL's name is the long one
    shown = {name: name.removesuffix("_name_or_path") for name in found}
    return [f"--{shown[name]} {given[name]}: {problem}" for name, problem in found.items() if problem is not None]


def _check_model(name: str) -> str | None:
    if os.path.exists(name):
        if os.path.isdir(name) and not any(os.scandir(name)):
            return "the folder is empty: name one that holds a model."
        return None
    return "there is no such folder." if _means_a_path(name) else _ask_hub(name, "model")


def _check_adapter(name: str) -> str | None:
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "adapter_config.json")):
        return "the folder holds no adapter: name the output of a stage 2 with --use_peft true."
    return _check_model(name)


def _check_data(name: str) -> str | None:
    if os.path.exists(name) or "://" in name:
        return None
    if any(character in name for character in "*?["):
        return None if next(iter(glob(name, recursive=True)), None) else "no file matches."
    if _means_a_path(name) or FORMATS & set(Path(name.lower()).suffixes):
        return "there is no such file or folder."
    return _ask_hub(name, "dataset")


def _means_a_path(name: str) -> bool:
    """Whether a name can be nothing else, such as a Hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return name.startswith((".", "~", os.sep))


def _ask_hub(name: str, kind: str) -> str | None:
    """What the Hub says about an id; nothing if the cache holds it."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    cached = [Path(HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")]
    if kind == "dataset":  # datasets has one of its own
        cached.append(Path(os.environ.get("HF_DATASETS_CACHE", f"{HF_HOME}/datasets"), name.replace("/", "___")))
    if any(folder.is_dir() for folder in cached):
        return None
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=10)
    except RepositoryNotFoundError:
        return (
            f"there is no such folder, and no {kind} of this name on the Hub, or you may not see it (hf auth login)."
        )
    except HfHubHTTPError:
        return None  # the Hub has more to say when the files are asked for
    except Exception as error:  # of whatever lies between here and the Hub
        return f"there is no such folder, and the Hub cannot be reached ({type(error).__name__})."
    return None


def _check_file(name: str) -> str | None:
    return None if os.path.isfile(name) else "there is no such file."


def _check_levels(number: int) -> str | None:
    return None if number >= 2 else "there have to be at least two levels."


def _check_image_folder(name: str) -> str | None:
    return None if os.path.isdir(name) else "there is no such folder."


def _check_output_file(name: str) -> str | None:
    if os.path.isdir(name):
        return "this is a folder: name a file."
    return _probe(Path(name).absolute().parent)


def _check_output_dir(name: str, inputs: dict[str, str], new_output: bool) -> str | None:
    folder = Path(os.path.realpath(name))
    for option, value in inputs.items():
        if os.path.exists(value) and folder == Path(os.path.realpath(value)):
            return f"this is --{option.removesuffix('_name_or_path')} as well: name another folder."
    if folder.is_dir() and new_output and any(folder.iterdir()):
        return "it is there already, and not empty: name another folder, or remove it first."
    return _probe(folder)


def _probe(folder: Path) -> str | None:
    """Whether files can be written into a folder, or into the one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is a file: name another folder."
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{folder} cannot be written to ({error.strerror}): name another folder."
    return None
