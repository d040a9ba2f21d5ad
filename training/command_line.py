"""`aligngpt pretrain` and `aligngpt sft`: arguments, help and checks of the training scripts, and their launch."""

import argparse
import ast
import importlib
import os
import subprocess
import sys
from importlib.resources import files
from typing import Any

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers.utils import logging
from trl import ModelConfig, TrlParser

from aligngpt.processing.command_line import CommandParser
from aligngpt.processing.command_output import Mistakes, start_logging, told_in_a_line
from aligngpt.training.arguments import (
    AblationArguments,
    ComposeArguments,
    DataArguments,
    StageConfig,
    find_packaged,
    find_recipe,
)
from aligngpt.training.stage_checks import StageName, find_launch_problems, find_run_problems


logger = logging.get_logger(__name__)

GROUPS = {
    "pretrain": (DataArguments, ComposeArguments, StageConfig, ModelConfig),
    "sft": (DataArguments, AblationArguments, StageConfig, ModelConfig),
}
# TRL's and transformers' arguments that most runs need, shown with our own
SHOWN = {"output_dir", "model_name_or_path", "config", "accelerate_config", "resume_from_checkpoint", "max_steps"}
SHOWN |= {"learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"}
SHOWN |= {"max_length", "eval_strategy", "use_peft", "load_in_4bit"}
SHOWN |= {"bf16", "fp16", "dtype", "use_cpu", "report_to", "push_to_hub", "hub_model_id", "help", "help_all"}
NOT_IN_RECIPES = {"config", "accelerate_config", "help", "help_all"}


class StageParser(CommandParser, TrlParser):
    """
    The arguments of a stage: TRL's parser, with what the commands have in common.

    Args:
        stage (`str`): `pretrain` or `sft`.
        launch_file (`str`, *optional*): accelerate's configuration, if other processes will train: parsing then gives
            the arguments as they are, and leaves to accelerate what only it knows, as `launch_arguments`.

    Raises:
        Mistakes: from parsing, with all mistakes in command line, recipe, files and precision.
    """

    def __init__(self, stage: StageName, launch_file: str | None = None):
        source = files(__package__).joinpath(f"{stage}.py").read_text(encoding="utf-8")
        super().__init__(GROUPS[stage], prog=f"aligngpt {stage}", description=ast.get_docstring(ast.parse(source)))
        self.stage, self.launch_file, self.launch_arguments = stage, launch_file, []
        self.needed.append("output_dir")
        self.show_all = False
        self.add_argument("--config", help="Recipe: the name of a packaged one, or a YAML file. Options win over it.")
        self.add_argument(
            "--accelerate_config", help="Launch through accelerate: the name of a packaged file, or a YAML file."
        )
        self.add_argument("--help_all", action="help", help="Show TRL's and transformers' arguments as well.")

    def parse(self, arguments: list[str]) -> tuple[Any, ...]:
        """The dataclasses of the stage."""
        return self.parse_args_and_config(find_recipe(arguments))

    def add_argument(self, *names, **kwargs):
        if "--model_name_or_path" in names:
            names, kwargs = ("--model", *names), {**kwargs, "dest": "model_name_or_path", "metavar": "MODEL"}
        return super().add_argument(*names, **kwargs)

    def format_help(self) -> str:
        ours = SHOWN | StageConfig.__annotations__.keys()
        for group in GROUPS[self.stage][:2]:
            ours |= group.__dataclass_fields__.keys()
        if not self.show_all:
            for action in self._actions:
                action.help = action.help if action.dest in ours else argparse.SUPPRESS
        recipes = [
            f"  {path.name.removesuffix('.yaml'):<22}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}"
            for path in sorted(files(__package__).joinpath("recipes").iterdir(), key=lambda path: path.name)
            if path.name.startswith(self.stage)
        ]
        configs = sorted(
            path.name.removesuffix(".yaml") for path in files(__package__).joinpath("accelerate").iterdir()
        )
        more = [] if self.show_all else ["", f"TRL's and transformers' arguments: aligngpt {self.stage} --help-all"]
        lines = ["recipes (--config):", *recipes, "", f"launches (--accelerate_config): {', '.join(configs)}", *more]
        self.epilog = "\n".join(lines).replace("%", "%%")
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):
        self.show_all = any(name in ("--help_all", "--help-all") for name in args or [])
        namespace, _ = super().parse_known_args(args, namespace)
        for name in ("config", "accelerate_config"):  # of no dataclass
            delattr(namespace, name)
        return namespace, []

    def parse_args_into_dataclasses(self, args=None, **kwargs):
        if self.launch_file is not None:  # the dataclasses look at the devices
            return (self.parse_known_args(args)[0],)
        return super().parse_args_into_dataclasses(args, **kwargs)

    def take_unknown(self, unknown: list[str]) -> list[str]:
        if self.launch_file is None:
            return unknown
        known = launch_command_parser()._option_string_actions
        options = [text for text in unknown if text.startswith("-")]
        strange = [text for text in options if text.partition("=")[0] not in known]
        if not strange and unknown[:1] == options[:1]:
            self.launch_arguments = unknown
            return []
        return strange or unknown

    def find_problems(self, values: dict[str, Any]) -> list[str]:
        problems = find_run_problems(self.stage, values, launching=self.launch_file is not None)
        if self.launch_file is not None:
            problems += find_launch_problems(self.launch_file, self.read_launch([]))
        return problems

    def read_launch(self, arguments: list[str]) -> argparse.Namespace:
        """What accelerate makes of a launch of the stage with these arguments."""
        script = ["-m", f"aligngpt.training.{self.stage}", *arguments]
        return launch_command_parser().parse_args(["--config_file", self.launch_file, *self.launch_arguments, *script])

    def set_defaults_with_config(self, **config) -> list[str]:
        now = {self.name_now(name): value for name, value in config.items()}
        known = {action.dest for action in self._actions} - NOT_IN_RECIPES
        unknown = [
            f"the recipe has an unknown key {name}"
            + (": it belongs on the command line" if name in NOT_IN_RECIPES else self.suggest(name))
            for name in now.keys() - known
        ]
        for action in self._actions:
            value = now.get(action.dest)
            if action.choices is not None and value is not None and value not in action.choices:
                unknown.append(f"{action.dest} is {value!r} in the recipe; it can be {', '.join(action.choices)}")
        if unknown:
            raise Mistakes(unknown)
        return super().set_defaults_with_config(**now)


def pretrain(arguments: list[str]) -> None:
    """The command `aligngpt pretrain`."""
    run_stage("pretrain", arguments)


def sft(arguments: list[str]) -> None:
    """The command `aligngpt sft`."""
    run_stage("sft", arguments)


def run_script(stage: StageName) -> None:
    """`aligngpt pretrain` or `aligngpt sft` as a script: what `accelerate launch` and `torchrun` start."""
    start_logging()
    debug = "--debug" in sys.argv
    with told_in_a_line(f"aligngpt {stage}", debug):
        run_stage(stage, [argument for argument in sys.argv[1:] if argument != "--debug"])


def run_stage(stage: StageName, arguments: list[str]) -> None:
    """
    Runs a stage in this process, or with `--accelerate_config` in those that accelerate launches.

    Raises:
        Mistakes: with everything that is wrong with the arguments, before any weights are loaded.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--accelerate_config", "--accelerate-config")
    name, arguments = own.parse_known_args(arguments)[0].accelerate_config, own.parse_known_args(arguments)[1]
    if name is not None and "LOCAL_RANK" in os.environ:
        raise Mistakes(["--accelerate_config: this process is launched already; leave it out."])
    launch_file = name and find_packaged(name, "accelerate", "accelerate configuration")
    parser = StageParser(stage, launch_file)
    parsed = parser.parse(arguments)
    if os.environ.get("RANK", "0") == "0":
        logger.info(f"Output: {os.path.abspath(parsed[0 if launch_file else 2].output_dir)}")
    if launch_file is None:
        importlib.import_module(f"aligngpt.training.{stage}").main(*parsed)
        return
    try:
        launch_command(parser.read_launch(_without(arguments, parser.launch_arguments)))
    except subprocess.CalledProcessError as error:  # which has told why it ended
        sys.exit(error.returncode)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)


def _without(arguments: list[str], taken: list[str]) -> list[str]:
    """The arguments without some of them, which are in the same order."""
    rest, taken = [], [*taken]
    for argument in arguments:
        if taken and argument == taken[0]:
            taken.pop(0)
        else:
            rest.append(argument)
    return rest
