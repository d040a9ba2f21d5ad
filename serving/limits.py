"""What a request has to pass before anything looks at it: the key, the size of its body, the time that it takes."""

import asyncio
import contextlib
import hmac
import json
import logging
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health",)  # for who watches whether the server runs
REQUEST_ID = b"x-request-id"
SECONDS_OF_DRAINING = 2


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Refused(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, message: str, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class Limits:
    """
    Middleware around the whole application.

    Args:
        app: what comes next.
        api_key (`str`, *optional*): what `Authorization: Bearer` has to say.
        max_body_bytes (`int`): of a request.
        body_timeout (`float`): seconds for a body to arrive.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int, body_timeout: float):
        self.app, self.api_key = app, api_key
        self.max_body_bytes, self.body_timeout = max_body_bytes, body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(REQUEST_ID, b"")[:64]
        request_id = given if given.replace(b"-", b"").isalnum() else str(uuid.uuid4()).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode("ascii")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (REQUEST_ID, request_id)]
            await send(message)

        try:
            self._check_key(scope["path"], headers)
            body = await self._read_body(headers, receive)
        except Refused as refused:
            await self._drain(receive)
            await _refuse(send_with_id, refused)
            return
        except ConnectionError:
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_body() -> Message:
            return next(messages, None) or await receive()

        await self.app(scope, receive_body, send_with_id)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.api_key is None or path in OPEN_PATHS:
            return
        given = headers.get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # In the same time, however much of it is right
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key.encode()):
            raise Refused(401, "This server needs its API key: Authorization: Bearer KEY.", "invalid_api_key")

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        too_large = Refused(413, f"The body has more than {self.max_body_bytes} bytes.", "body_too_large")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    if len(body) > self.max_body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise Refused(408, f"The body did not come within {self.body_timeout:g} seconds.", "timeout") from error

    async def _drain(self, receive: Receive) -> None:
        """Reads on for a moment: a client that is still sending when the connection closes never sees the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS_OF_DRAINING):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return


async def _refuse(send: Send, refused: Refused) -> None:
    content = json.dumps(error_body(refused.status, str(refused), refused.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
