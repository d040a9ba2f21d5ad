"""The command `aligngpt`: each sub-command is the `main` of one module."""

import importlib
import logging
import sys


COMMANDS = {
    "score": ("aligngpt.processing.scoring.command", "score how well each caption of a corpus describes its image"),
    "levels": ("aligngpt.processing.levels.command", "cut the scores into alignment levels: data for stage 1"),
    "compose": ("aligngpt.weights.compose_command", "make a model from a vision tower and a language model"),
    "convert": ("aligngpt.weights.converting", "make a model from the authors' checkpoint or from LLaVA-1.5"),
    "merge": ("aligngpt.training.merge", "fold a LoRA adapter into the model that it was trained on"),
    "inspect": ("aligngpt.training.inspection", "show what a row of training data becomes, token by token"),
    "card": ("aligngpt.training.model_card", "write the model card of a training run's output anew"),
    "export-llava": ("aligngpt.weights.exporting", "write a stock LLaVA with a fixed alignment vector"),
}


def main() -> None:
    """Runs the sub-command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        lines = [f"  {command:<14}{text}" for command, (_, text) in COMMANDS.items()]
        usage = "\n".join(["usage: aligngpt COMMAND ...   (aligngpt COMMAND --help for its arguments)", "", *lines])
        if name in ("-h", "--help"):
            sys.stdout.write(usage + "\n")
            return
        sys.exit(f"aligngpt: there is no command {name!r}\n{usage}")
    logger = logging.getLogger("aligngpt")  # not the root: libraries would tell of every request
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    importlib.import_module(COMMANDS[name][0]).main(arguments)


if __name__ == "__main__":
    main()
