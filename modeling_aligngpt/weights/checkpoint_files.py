"""Weights of a checkpoint folder, whole: safetensors or pickles of tensors, in one file or in shards."""

import json
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """
    All weights of a folder (its index, or its one file), or of one file. Pickles are mapped into memory, and may hold
    nothing but tensors.

    Raises:
        FileNotFoundError: if there are no weights, or a shard is missing.
        ValueError: if a file cannot be read, holds anything but tensors, or lacks a weight that the index promises.
    """
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    for name in WEIGHT_FILES:
        if (index := path / f"{name}.index.json").is_file():
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = {file: path / file for file in sorted(set(weight_map.values()))}
            if missing := [file for file, shard in shards.items() if not shard.is_file()]:
                raise FileNotFoundError(f"{path} lacks {missing} of the {len(shards)} shards that {index.name} names.")
            state = {}
            for shard in shards.values():
                state |= _read_file(shard)
            if absent := sorted(weight_map.keys() - state.keys()):
                raise ValueError(f"The shards of {path} lack weights that {index.name} names: {absent[:5]}")
            return state
        if (path / name).is_file():
            return _read_file(path / name)
    raise FileNotFoundError(f"There are no weights in {path}: none of {', '.join(WEIGHT_FILES)}, or their indices.")


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files by other people: with `weights_only` a pickle cannot run code
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds something else than tensors, and is not run: {error}") from error
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read, it may be damaged: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds something else than a dictionary of tensors.")
    return state


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:  # the format of torch.save before 1.6 cannot be mapped
        return file.read(2) == b"PK"
