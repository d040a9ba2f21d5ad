"""
A server with OpenAI's interface: transformers' handlers of `/v1/chat/completions` and `/v1/responses` write the
answers and streams; what they are given is read, checked and batched here.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.response import ResponseHandler

from aligngpt.processing.corpus.faults import Fault

from .answering import Assistant, Level, PromptTooLongError
from .arguments import Sampling
from .batching import BatchManager, BusyError, Row
from .conversations import read_conversation, to_conversation
from .limits import Limits, error_body
from .remote_images import ForbiddenAddressError, ImageSource
from .request_fields import RequestError, Wishes, read_wishes


logger = logging.getLogger(__name__)

PREPARED_AT_ONCE = 4  # conversations whose pictures are opened at the same time
SECONDS_BETWEEN_LOOKS = 0.5  # whether a client is still there


@dataclass
class ServerOptions:
    """What the server allows, and what it does where requests say nothing."""

    name: str
    sampling: Sampling = field(default_factory=Sampling)
    level: Level = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    api_key: str | None = None
    max_batch_size: int = 8
    max_waiting: int = 512
    max_images: int = 16
    max_body_bytes: int = 20 * 2**20
    body_timeout: float = 60
    image_urls: str = "public"


class Reader:
    """Makes of a request's messages what a batch takes."""

    def __init__(self, assistant: Assistant, options: ServerOptions):
        self.assistant, self.options = assistant, options
        self.images = ImageSource(options.image_urls, options.max_body_bytes)
        self._places = asyncio.Semaphore(PREPARED_AT_ONCE)

    async def read(self, body: dict[str, Any], messages: Any) -> Row:
        """
        A request, ready to be queued. Pictures are opened on another thread: other clients are answered meanwhile.

        Raises:
            RequestError: with what is wrong.
        """
        if (model := body.get("model")) not in (None, self.options.name):
            code = "model_not_found"
            raise RequestError(f"This server has {self.options.name!r}, not {model!r}.", "model", 404, code)
        wishes = read_wishes(body, self.options.sampling, self.options.level, self.options.template_arguments)
        async with self._places:
            inputs = await asyncio.to_thread(self._prepare, messages, wishes)
        sampling = self.assistant.fit(wishes.sampling, inputs)
        return Row(inputs, sampling, wishes.stops, self.assistant, streams=bool(body.get("stream")))

    def _prepare(self, messages: Any, wishes: Wishes) -> Any:
        try:
            sample = read_conversation(messages)
            if len(sample.images) > self.options.max_images:
                raise RequestError(
                    f"There are {len(sample.images)} pictures; {self.options.max_images} are allowed.", "messages"
                )
            conversation = to_conversation(sample, self.images.open)
            return self.assistant.prepare([conversation], wishes.level, **wishes.template_arguments)
        except PromptTooLongError as error:
            raise RequestError(str(error), "messages", code="context_length_exceeded") from error
        except ForbiddenAddressError as error:
            raise RequestError(f"A picture cannot be had: {error}", "messages", code="forbidden_url") from error
        except Fault as error:
            raise RequestError(str(error), "messages", code=error.kind) from error
        except ValueError as error:  # a picture's, the processor's
            kind = getattr(error, "kind", None)
            text = f"A picture cannot be used: {error}" if kind else str(error)
            raise error if isinstance(error, RequestError) else RequestError(text, "messages", code=kind) from error


class ChatHandler(ChatCompletionHandler):
    """`/v1/chat/completions`."""

    def __init__(self, reader: Reader, manager: BatchManager):
        self.reader, self.manager = reader, manager

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """An answer, or a stream of one."""
        row = await self.reader.read(body, body.get("messages"))
        model, processor = self.reader.assistant.model, self.reader.assistant.processor
        arguments = (f"chatcmpl-{request_id}", model, processor, self.reader.options.name, row, row.sampling)
        if not body.get("stream"):
            return await self._non_streaming(*arguments, gen_manager=self.manager)
        response = self._streaming(*arguments, gen_manager=self.manager)
        response.body_iterator = _with_end(response.body_iterator)
        return response


class ResponsesHandler(ResponseHandler):
    """`/v1/responses`."""

    def __init__(self, reader: Reader, manager: BatchManager):
        self.reader, self.manager = reader, manager

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Response:
        """An answer, or a stream of one."""
        if body.get("input") is None:
            raise RequestError("input is missing.", "input")
        try:
            messages = self._normalize_input(body)
        except (AttributeError, KeyError, TypeError) as error:
            raise RequestError(f"input is of no known form: {error!r}", "input") from error
        row = await self.reader.read(body, messages)
        model, processor = self.reader.assistant.model, self.reader.assistant.processor
        arguments = (request_id, model, processor, self.reader.options.name, body, row, row.sampling)
        if not body.get("stream"):
            return await self._non_streaming(*arguments, gen_manager=self.manager)
        return self._streaming(*arguments, gen_manager=self.manager)


async def _with_end(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """The line that OpenAI's streams end with, for clients that wait for it."""
    async for chunk in chunks:
        yield chunk
    yield "data: [DONE]\n\n"


def build_app(assistant: Assistant, options: ServerOptions) -> FastAPI:
    """The application, to be run by uvicorn or another server of ASGI, in one process: it has one model."""
    app = FastAPI(title="aligngpt", docs_url=None, redoc_url=None, openapi_url=None)
    reader = Reader(assistant, options)
    manager = BatchManager(assistant, options.max_batch_size, options.max_waiting)
    chat, responses = ChatHandler(reader, manager), ResponsesHandler(reader, manager)
    created = int(time.time())

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: dict[str, Any]) -> Response:
        return await _while_there(request, chat.handle_request(body, request.state.request_id))

    @app.post("/v1/responses")
    async def create_response(request: Request, body: dict[str, Any]) -> Response:
        return await _while_there(request, responses.handle_request(body, request.state.request_id))

    @app.post("/v1/alignment_weights")
    async def alignment_weights(body: dict[str, Any]) -> dict[str, Any]:
        """How the gate mixes the levels below the best for the messages of a chat completion."""
        row = await reader.read(body, body.get("messages"))
        weights = await asyncio.to_thread(assistant.weights, row.inputs)
        return {"object": "alignment_weights", "model": options.name, "alignment_weights": weights[0].tolist()}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": options.name, "object": "model", "created": created, "owned_by": options.name.split("/")[0]}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.exception_handler(RequestError)
    async def tell_mistake(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error_body(error.status, str(error), error.code, error.param), error.status)

    @app.exception_handler(RequestValidationError)
    async def tell_malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        told = "; ".join(f"{problem['msg']}" for problem in error.errors()[:3])
        return JSONResponse(error_body(400, f"The body is no JSON object: {told}", "malformed_body"), 400)

    @app.exception_handler(StarletteHTTPException)
    async def tell_status(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code)

    @app.exception_handler(BusyError)
    async def tell_busy(_: Request, error: BusyError) -> JSONResponse:
        return JSONResponse(error_body(503, str(error), "busy"), 503, {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def tell_failure(request: Request, error: Exception) -> JSONResponse:
        told = f"The server failed; its log has more under {request.state.request_id}."
        logger.error("Request %s failed.", request.state.request_id, exc_info=error)
        return JSONResponse(error_body(500, told), 500)

    app.add_middleware(
        Limits, api_key=options.api_key, max_body_bytes=options.max_body_bytes, body_timeout=options.body_timeout
    )
    return app


async def _while_there(request: Request, handling: Coroutine[Any, Any, Response]) -> Response:
    """The response, if the client waits for it; a request whose client is gone is taken out of the queue."""
    task = asyncio.ensure_future(handling)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=SECONDS_BETWEEN_LOOKS)
            if not task.done() and await request.is_disconnected():
                break
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        return Response(status_code=499)  # nobody reads it
    response = task.result()
    assert isinstance(response, Response | StreamingResponse)
    return response
