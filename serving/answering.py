"""One model and its processor, asked: inputs of conversations, answers whole or piece by piece, the gate's weights."""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Any, Literal, TypeVar

import torch
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from aligngpt import AlignGPTForConditionalGeneration, AlignGPTProcessor
from aligngpt.processing.corpus.faults import Fault

from .arguments import Sampling


Level = int | str | None
Item = TypeVar("Item")
Result = TypeVar("Result")


class PromptTooLongError(ValueError):
    """A conversation leaves no room for an answer in the model's context."""


class Stopped(StoppingCriteria):
    """Ends `generate` when somebody says so."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Assistant:
    """
    Answers conversations. Every answer is computed from the conversation as a whole: `<align>` stands before
    everything else, and its vector depends on all that the user has said, so no part of an earlier turn's cache holds
    in the next.

    Args:
        model ([`AlignGPTForConditionalGeneration`]): or a PEFT model of it.
        processor ([`AlignGPTProcessor`]): the model's.
    """

    def __init__(self, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor):
        self.model, self.processor = model, processor
        self.eos_token_ids = find_eos_token_ids(model, processor)
        # A tokenizer that one thread sets padding of fails in another that reads with it at the same time
        self._preparing = Lock()
        self._decoding = copy.deepcopy(processor.tokenizer)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.get_text_config().max_position_embeddings

    def prepare(
        self, conversations: list[list[dict[str, Any]]], levels: Level | Sequence[Level] = None, **template_arguments
    ) -> BatchFeature:
        """
        Inputs of the model for conversations (B), padded on the left.

        Args:
            conversations: messages of typed parts, with pictures under `image`.
            levels: an alignment level for all, or one for each; None or `"auto"` lets the gate choose. The inputs
                have `alignment_levels` in any case, so that those of several calls fit together.
            template_arguments: variables of the chat template.

        Raises:
            ValueError: what the processor refuses.
            PromptTooLongError: if a conversation fills the context.
        """
        with self._preparing:
            inputs = self.processor.apply_chat_template(
                conversations,
                alignment_level="auto" if levels is None else levels,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
                **template_arguments,
            )
        inputs = inputs.to(self.model.device, self.model.dtype)
        if (length := inputs["input_ids"].shape[1]) >= self.context_length:
            raise PromptTooLongError(
                f"The conversation has {length} tokens, its pictures' included; the model's context of "
                f"{self.context_length} leaves no room for an answer."
            )
        return inputs

    def fit(self, sampling: Sampling, inputs: Mapping[str, torch.Tensor]) -> Sampling:
        """The sampling with as many new tokens as the context has room for behind these inputs."""
        room = self.context_length - inputs["input_ids"].shape[1]
        return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))

    def weights(self, inputs: BatchFeature) -> torch.Tensor:
        """The gate's weights (B, N-1), zeros in rows without a picture or with a level that was asked for."""
        with torch.inference_mode():
            return self.model.get_alignment_weights(**inputs).float().cpu()

    def why_no_gate(
        self, inputs: BatchFeature, weights: torch.Tensor
    ) -> Literal["no picture", "level", "mode"] | None:
        """
        Why the gate chose nothing for one conversation: it has no picture, a level was asked for, or the model's
        `alignment_mode` has no gate; None if its weights (1, N-1) say that it did.
        """
        if weights.any():
            return None
        if self.processor.image_token_id not in inputs["input_ids"]:
            return "no picture"
        return "level" if (inputs["alignment_levels"] >= 0).any() else "mode"

    def answer(self, inputs: BatchFeature, sampling: Sampling) -> list[tuple[str, str]]:
        """Answers (B), and why each ended: `"stop"`, or `"length"` where it was cut off."""
        length = inputs["input_ids"].shape[1]
        sequences = self.generate(inputs, sampling)
        return [self.read_answer(row) for row in sequences[:, length:].tolist()]

    def generate(self, inputs: Mapping[str, torch.Tensor], sampling: Sampling, **options: Any) -> torch.Tensor:
        """Ids of prompts and answers (B, length), as the model's `generate`, which takes `options`."""
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        options |= {
            "max_new_tokens": self.fit(sampling, inputs).max_new_tokens,
            "max_length": None,  # a checkpoint's own would be warned of beside it
            "eos_token_id": self.eos_token_ids,
            **sampling.options(),
        }
        with torch.inference_mode():
            return self.model.generate(**inputs, **options)

    def read_answer(self, token_ids: list[int]) -> tuple[str, str]:
        """The text of generated ids, up to the end of the turn, and why it ended."""
        end = next((n for n, token_id in enumerate(token_ids) if token_id in self.eos_token_ids), None)
        return self.decode(token_ids[:end]).strip(), "length" if end is None else "stop"

    def decode(self, token_ids: list[int]) -> str:
        """The text of generated ids; from any thread."""
        text: str = self._decoding.decode(token_ids, skip_special_tokens=True)
        return text

    def stream(
        self, inputs: BatchFeature, sampling: Sampling, stop: Event | None = None
    ) -> Generator[str, None, None]:
        """
        The answer to one conversation, piece by piece. Generation ends when the iterator is closed or `stop` is set.

        Raises:
            Exception: what `generate` raised, in the caller's thread.
        """
        stop = Event() if stop is None else stop
        streamer = TextIteratorStreamer(self._decoding, skip_prompt=True, skip_special_tokens=True)
        failures: list[Exception] = []

        def run() -> None:
            try:
                criteria = StoppingCriteriaList([Stopped(stop)])
                self.generate(inputs, sampling, streamer=streamer, stopping_criteria=criteria)
            except Exception as error:
                failures.append(error)
            finally:
                streamer.end()

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            is_first = True
            for piece in streamer:
                piece = piece.lstrip() if is_first else piece
                if piece:
                    is_first = False
                    yield piece
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]


def in_batch(call: Callable[[list[Item]], list[Result]], items: list[Item]) -> list[Result | Fault]:
    """
    What a call makes of items together. If it refuses them, of each alone: only what is to blame becomes a fault.

    Args:
        call: may raise `ValueError`, or run out of the GPU's memory.
        items: a batch, or none.
    """
    if not items:
        return []
    try:
        return list(call(items))
    except PromptTooLongError as error:
        fault = Fault("too_long", str(error))
    except ValueError as error:
        fault = Fault("template", str(error))
    except torch.OutOfMemoryError as error:
        fault = Fault("unexpected", str(error))
    return [fault] if len(items) == 1 else [found for item in items for found in in_batch(call, [item])]


def find_eos_token_ids(model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor) -> list[int]:
    """
    The tokens that end an answer: those of the checkpoint, and the one that the chat template writes after an
    assistant's turn, which checkpoints of other programs do not always name.
    """
    ids = model.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    marker = "answered"
    chat = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": marker}]
    text = processor.apply_chat_template(chat, tokenize=False) if processor.chat_template else ""
    following = processor.tokenizer(text.rpartition(marker)[2], add_special_tokens=False).input_ids[:1]
    added = processor.tokenizer.added_tokens_decoder
    is_special = bool(following) and following[0] in added and added[following[0]].special
    return [*ids, *following] if is_special and following[0] not in ids else ids
