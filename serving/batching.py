"""
Generation for many clients: what waits while a batch runs is the next batch. transformers' server runs one `generate`
after the other for models with pictures; its handlers take any manager of generation, and this is one.
"""

import asyncio
import json
import logging
import threading
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import BaseGenerateManager, _StreamError

from .answering import Assistant
from .arguments import Sampling


logger = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """More requests wait than the server holds."""


class Row:
    """
    One request on its way: its inputs, and its answer so far. The handlers know it as a streamer.

    Args:
        inputs (`BatchFeature`): of one conversation.
        sampling ([`Sampling`]): `max_new_tokens` fits the context.
        stops (`list[str]`): texts that end the answer and are not part of it.
        assistant ([`Assistant`]): whose tokenizer reads the answer.
        streams (`bool`): whether pieces are handed on as they come.
    """

    def __init__(
        self, inputs: BatchFeature, sampling: Sampling, stops: list[str], assistant: Assistant, streams: bool
    ):
        self.inputs, self.sampling, self.stops, self.assistant = inputs, sampling, stops, assistant
        self.streams = streams
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.is_done = False
        self.token_ids: list[int] = []
        self.text = ""
        self._num_said = 0  # characters of the text that were handed on

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.inputs[name]

    @property
    def total_tokens(self) -> int:
        """Of the answer; transformers' handlers report them."""
        return len(self.token_ids)

    def cancel(self) -> None:
        """The client is gone."""
        self.cancelled.set()

    def put(self, token_id: int) -> None:
        """The next token."""
        if self.is_done:
            return
        self.token_ids.append(token_id)
        is_end = token_id in self.assistant.eos_token_ids
        if not is_end and (self.streams or self.stops):
            self._read()
            is_end = self._hand_on()
        if is_end or self.cancelled.is_set() or self.total_tokens >= self.sampling.max_new_tokens:
            self.end()

    def _read(self) -> None:
        """The whole anew: a later byte can change what earlier ones mean, where transformers' own decoder raises."""
        # Some tokenizers begin every text with a space
        self.text = self.assistant.decode(self.token_ids).lstrip()

    def _hand_on(self) -> bool:
        """Hands text on, but for half characters and what may be the begin of a stop text; whether one is there."""
        found = [place for stop in self.stops if (place := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            return True
        lengths = (n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        self._say(min(len(self.text.rstrip("\ufffd")), len(self.text) - max(lengths, default=0)))
        return False

    def _say(self, length: int) -> None:
        if self.streams and length > self._num_said:
            self._send(self.text[self._num_said : length])
            self._num_said = length

    def end(self, error: str | None = None) -> None:
        """No more tokens."""
        if not self.is_done:
            self.is_done = True
            if not (self.streams or self.stops):
                self._read()
            self._say(len(self.text))
            # The handlers write the message between quotes as it is
            self._send(None if error is None else _StreamError(json.dumps(error)[1:-1]))

    def _send(self, item: Any) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)


class _Rows(StoppingCriteria):
    """Streamer and stopping criterion of `generate` for a batch of rows."""

    def __init__(self, rows: list[Row]):
        self.rows, self.has_prompt = rows, False

    def put(self, token_ids: torch.Tensor) -> None:
        if not self.has_prompt:
            self.has_prompt = True
            return
        for row, token_id in zip(self.rows, token_ids.tolist(), strict=True):
            row.put(token_id)

    def end(self) -> None:
        for row in self.rows:
            row.end()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([row.is_done or row.cancelled.is_set() for row in self.rows], device=input_ids.device)


class BatchManager(BaseGenerateManager):
    """
    Runs requests in batches on one thread.

    Args:
        assistant ([`Assistant`]): who answers.
        max_batch_size (`int`): requests at a time; 1 for one after the other.
        max_waiting (`int`): requests that wait at most.
    """

    def __init__(self, assistant: Assistant, max_batch_size: int = 8, max_waiting: int = 512):
        self.assistant, self.max_batch_size, self.max_waiting = assistant, max_batch_size, max_waiting
        self._waiting: deque[Row] = deque()
        self._arrived = threading.Condition()
        threading.Thread(target=self._run, name="generation", daemon=True).start()

    def submit(self, row: Row) -> None:
        """
        Queues a request.

        Raises:
            BusyError: if too many wait.
        """
        with self._arrived:
            if len(self._waiting) >= self.max_waiting:  # those whose clients are gone make room
                self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled.is_set())
            if len(self._waiting) >= self.max_waiting:
                raise BusyError(f"{self.max_waiting} requests wait already: try again later.")
            self._waiting.append(row)
            self._arrived.notify()

    def generate_streaming(self, model, processor, inputs, gen_config, request_id, response_parser=None):  # type: ignore[no-untyped-def]
        """As transformers' handlers call it; `inputs` is a [`Row`]."""
        self.submit(inputs)
        return inputs.queue, inputs

    async def generate_non_streaming(self, model, processor, inputs, gen_config, request_id):  # type: ignore[no-untyped-def]
        """As transformers' handlers call it: the text, the prompt's tokens, the answer's ids."""
        row: Row = inputs
        self.submit(row)
        try:
            while (item := await row.queue.get()) is not None:
                if isinstance(item, _StreamError):
                    raise RuntimeError(item.msg)
        finally:
            row.cancel()  # nothing, if it is done
        return row.text.strip(), row.inputs["input_ids"].shape[1], row.token_ids

    def stop(self) -> None:
        """The thread ends with the process."""

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            try:
                self._generate(batch)
            except Exception:
                logger.exception("A batch of %d requests failed: they are answered one by one.", len(batch))
                for row in batch:
                    self._generate_alone(row)
            batch = []  # nothing of it stays in memory while there is nothing to do

    def _next_batch(self) -> list[Row]:
        """The request that has waited longest, and those that can run with it."""
        with self._arrived:
            while not self._waiting:
                self._arrived.wait()
            batch = [self._waiting.popleft()]
            sampling = batch[0].sampling
            if sampling.seed is None:  # random numbers are drawn for a batch: with a seed each has its own
                key = (sampling.temperature, sampling.top_p, None)
                for row in list(self._waiting):
                    if len(batch) == self.max_batch_size:
                        break
                    if (row.sampling.temperature, row.sampling.top_p, row.sampling.seed) == key:
                        self._waiting.remove(row)
                        batch.append(row)
        return batch

    def _generate_alone(self, row: Row) -> None:
        try:
            if row.token_ids and not row.is_done:  # its client has read some of it
                row.end("The answer could not be finished.")
            elif not row.is_done:
                self._generate([row])
        except Exception as error:
            logger.exception("A request failed.")
            row.end(f"The model failed: {type(error).__name__}.")

    def _generate(self, batch: list[Row]) -> None:
        for row in batch:
            if row.cancelled.is_set():
                row.end()
        if rows := [row for row in batch if not row.is_done]:
            length = max(row.sampling.max_new_tokens for row in rows)
            sampling = replace(rows[0].sampling, max_new_tokens=length)
            ends = _Rows(rows)
            inputs = collate([row.inputs for row in rows], self.assistant.processor.tokenizer.pad_token_id)
            self.assistant.generate(inputs, sampling, streamer=ends, stopping_criteria=StoppingCriteriaList([ends]))


def collate(inputs: list[BatchFeature], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Inputs of single conversations as those of a batch, padded on the left."""
    length = max(row["input_ids"].shape[1] for row in inputs)
    pads = {"input_ids": pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    batch = {}
    for name in {name: None for row in inputs for name in row}:
        tensors = [row[name] for row in inputs if name in row]
        if name in pads:
            shapes = ((length - tensor.shape[1], 0) for tensor in tensors)
            tensors = [
                torch.nn.functional.pad(tensor, shape, value=pads[name])
                for tensor, shape in zip(tensors, shapes, strict=True)
            ]
        batch[name] = torch.cat(tensors)
    return batch
