"""The chat templates that come with the package, with generation spans around what the assistant says."""

from importlib.resources import files


CHAT_TEMPLATES = ("vicuna_v1", "plain", "chatml", "llama3", "mistral", "gemma", "phi3")


def load_chat_template(name: str) -> str:
    """
    The Jinja source of a packaged chat template: `vicuna_v1` (LLaMA-2, Vicuna), `plain` (stage 1), `chatml` (Qwen),
    `llama3` (LLaMA-3-Instruct), `mistral` (Mistral-Instruct), `gemma` or `phi3`.

    Raises:
        ValueError: if there is no template of that name.
    """
    if name not in CHAT_TEMPLATES:
        raise ValueError(f"There is no chat template {name!r}; the packaged ones are {', '.join(CHAT_TEMPLATES)}.")
    return files(__package__).joinpath(f"{name}.jinja").read_text(encoding="utf-8")


INTERLEAVED = "{%- set interleaved = true -%}\n"


def interleave(template: str | dict[str, str]) -> str | dict[str, str]:
    """
    A packaged chat template (of several, the default one) that leaves images where they stand among the texts of
    their message, each with a newline after it, instead of writing them first.
    """
    if isinstance(template, dict):
        return {**template, "default": interleave(template["default"])}
    return template if template.startswith(INTERLEAVED) else INTERLEAVED + template


def is_interleaved(template: str | dict[str, str] | None) -> bool:
    """Whether a processor's chat template (of several, the default one) is one that `interleave` made."""
    template = template.get("default") if isinstance(template, dict) else template
    return template is not None and template.startswith(INTERLEAVED)
