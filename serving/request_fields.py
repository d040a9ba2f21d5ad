"""What a client may ask for, in OpenAI's words: checked, so that nothing is passed over in silence."""

from dataclasses import dataclass
from typing import Any

from .answering import Level
from .arguments import Sampling


# Fields that change nothing in the answer, whatever they say
HARMLESS = {"user", "metadata", "store", "service_tier", "stream_options", "parallel_tool_calls", "safety_identifier"}
HARMLESS |= {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "include", "truncation", "stream"}
# Fields that would change it, and the values with which they ask for what is done anyway
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "background": (False,),
}
READ = {"model", "messages", "input", "instructions", "temperature", "top_p", "seed", "stop", "chat_template_kwargs"}
READ |= {"max_tokens", "max_completion_tokens", "max_output_tokens"}
MAX_STOPS = 4


class RequestError(ValueError):
    """A request that cannot be answered; `status`, `code` and `param` as OpenAI's errors have them."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass
class Wishes:
    """How a request wants to be answered."""

    sampling: Sampling
    stops: list[str]
    level: Level
    template_arguments: dict[str, Any]


def read_wishes(body: dict[str, Any], defaults: Sampling, level: Level, template_defaults: dict[str, Any]) -> Wishes:
    """
    The fields of a request beside its messages.

    Args:
        body: the request.
        defaults ([`Sampling`]): of the server; its `max_new_tokens` is also the most that a request can ask for.
        level: the server's alignment level.
        template_defaults: variables of the chat template that the server sets, and a request may set otherwise.

    Raises:
        RequestError: if a field is unknown, or asks for what is not done, or its value means nothing.
    """
    for name, value in body.items():
        if name in READ or name in HARMLESS or value is None or value in DEFAULTS.get(name, ()):
            continue
        why = "is not done by this server" if name in DEFAULTS else "is not known to this server"
        raise RequestError(f"{name}={repr(value)[:80]} {why}: leave it out.", name)
    names = [
        name for name in ("max_completion_tokens", "max_tokens", "max_output_tokens") if body.get(name) is not None
    ]
    limit = _number(body, names[0], 1, 2**31, whole=True) if names else defaults.max_new_tokens
    temperature = _number(body, "temperature", 0, 2) if body.get("temperature") is not None else defaults.temperature
    top_p = _number(body, "top_p", 0, 1) if body.get("top_p") is not None else defaults.top_p
    if top_p == 0:
        raise RequestError("top_p=0 leaves no token to choose.", "top_p")
    seed = _number(body, "seed", -(2**63), 2**63 - 1, whole=True) if body.get("seed") is not None else None
    sampling = Sampling(
        max_new_tokens=min(int(limit), defaults.max_new_tokens),
        temperature=temperature,
        top_p=top_p,
        seed=int(seed) if seed is not None and temperature > 0 else None,
    )
    arguments = _read_template_arguments(body, template_defaults)
    return Wishes(sampling, _read_stops(body.get("stop")), arguments.pop("alignment_level", level), arguments)


def _read_template_arguments(body: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A template may read any variable; those that the operator has named can be set, and the level."""
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise RequestError("chat_template_kwargs is an object.", "chat_template_kwargs")
    known = {"alignment_level", *defaults}
    if unknown := sorted(given.keys() - known):
        raise RequestError(f"chat_template_kwargs has {unknown}; known: {sorted(known)}.", "chat_template_kwargs")
    level = given.get("alignment_level")
    if not (level is None or isinstance(level, int | str)) or isinstance(level, bool):
        raise RequestError(f"alignment_level is {str(level)[:80]!r}: a number or a name.", "chat_template_kwargs")
    return {**defaults, **given}


def _read_stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f"stop is a text or a list of {MAX_STOPS} at most, none of them empty.", "stop")
    return stops


def _number(body: dict[str, Any], name: str, least: float, most: float, whole: bool = False) -> float:
    value = body[name]
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name}={repr(value)[:80]}: {kind} from {least:g} to {most:g} is meant.", name)
    return value
