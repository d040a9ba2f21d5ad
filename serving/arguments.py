"""What the commands of this folder are told: the model, how it answers, whom. Imports nothing that is slow."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelArguments:
    """What to load, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of a model, or of the adapter of a stage 2 with LoRA."})
    revision: str = field(default="main", metadata={"help": "Of a Hub id: branch, tag or commit."})
    dtype: str = field(
        default="auto", metadata={"help": "Of the weights: auto (as stored), bfloat16, float16, float32."}
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "The language model's layers in 4 bits."})
    load_in_8bit: bool = field(default=False, metadata={"help": "The language model's layers in 8 bits."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, ..."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})

    def find_problems(self) -> list[str]:
        """What no model could be loaded with."""
        problems = []
        if self.load_in_4bit and self.load_in_8bit:
            problems.append("--load_in_4bit and --load_in_8bit: the layers can be in one of both.")
        if self.dtype not in ("auto", "bfloat16", "float16", "float32"):
            problems.append(f"--dtype {self.dtype}: known are auto, bfloat16, float16, float32.")
        return problems


@dataclass
class Sampling:
    """How answers are chosen: greedily, unless there is a temperature."""

    max_new_tokens: int = field(default=1024, metadata={"help": "An answer has these many tokens at most."})
    temperature: float = field(default=0.0, metadata={"help": "0: the likeliest token each time; else sample."})
    top_p: float = field(default=1.0, metadata={"help": "With a temperature: among the likeliest of this share."})
    seed: int | None = field(default=None, metadata={"help": "Of the sampling."})

    def find_problems(self) -> list[str]:
        """Values that mean nothing."""
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"--max_new_tokens {self.max_new_tokens}: an answer has one token at least.")
        if not 0 <= self.temperature <= 2:
            problems.append(f"--temperature {self.temperature}: it is between 0 and 2.")
        if not 0 < self.top_p <= 1:
            problems.append(f"--top_p {self.top_p}: it is above 0, and 1 at most.")
        return problems

    def options(self) -> dict[str, Any]:
        """For `generate`."""
        if self.temperature == 0:  # the checkpoint's own values would be warned of
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


FOR_FILES = ("output_file", "image_folder", "batch_size")


@dataclass
class ChatArguments(Sampling, ModelArguments):
    """Which model, how it answers, and whom."""

    level: str = field(default="auto", metadata={"help": "Alignment level: 0 to N-1, worst, best, or auto: the gate."})
    system: str | None = field(default=None, metadata={"help": "System message, if conversations have none."})
    image: list[str] = field(default_factory=list, metadata={"help": "Pictures to begin with: files or URLs."})
    input: str | None = field(default=None, metadata={"help": "File of questions to answer instead of talking."})
    output_file: str | None = field(default=None, metadata={"help": "With --input: the file to write answers to."})
    image_folder: str | None = field(default=None, metadata={"help": "With --input: where paths of images start."})
    batch_size: int | None = field(
        default=None, metadata={"help": "With --input: questions at a time; 8 if not given."}
    )


def read_level(text: str) -> int | str:
    """A level as it is typed: a number, or a name that the processor knows."""
    return int(text) if text.strip().lstrip("-").isdigit() else text.strip()


def find_problems(args: ChatArguments) -> list[str]:
    """Arguments that do not go together."""
    problems = Sampling.find_problems(args) + ModelArguments.find_problems(args)
    if args.input is None:
        given = [name for name in FOR_FILES if getattr(args, name) is not None]
        problems += [f"--{name} is for --input, which is not given." for name in given]
    else:
        if args.output_file is None:
            problems.append("--output_file must be given with --input.")
        if args.image:
            problems.append("--image is for talking; questions of --input name their own.")
        if args.batch_size is not None and args.batch_size < 1:
            problems.append(f"--batch_size {args.batch_size}: one question at a time is the least.")
    return problems
