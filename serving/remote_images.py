"""
Pictures that a client of the server names: in `data:` URLs, or on the public internet. A server that fetches whatever
it is told to would read the pages of the network that it stands in; addresses are therefore looked at where the
connection is made, so that neither a name that resolves to two things nor a redirect leads around the check.
"""

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import httpcore
from PIL import Image

from aligngpt.processing.image_conversion_aligngpt import ImageError, load_rgb_image
from aligngpt.processing.image_loading_aligngpt import read_image


NAT64 = ipaddress.ip_network("64:ff9b::/96")
MAX_REDIRECTS = 3
SCHEMES = ("http://", "https://")


class ForbiddenAddressError(ValueError):
    """A URL leads to where the server must not go."""


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also one of IPv4 that is written inside one of IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
    return ip.is_global and not ip.is_multicast


class PublicNetwork(httpcore.NetworkBackend):
    """Connects to public addresses only, to the very address that was looked at."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} is not known") from error
        # All of them: one that is public beside one that is not is no accident
        if forbidden := [address for address in found if not is_public(str(address))]:
            raise ForbiddenAddressError(f"{host} is {forbidden[0]}, which is not on the public internet.")
        return self._backend.connect_tcp(str(found[0]), port, timeout, local_address, socket_options)


def in_ascii(url: str) -> str:
    """
    A URL as it goes over the wire: names of other alphabets in their international form, other characters in per cent.

    Raises:
        UnicodeError: if its host has no such form.
    """
    if url.isascii():
        return url
    split = urlsplit(url)
    place = split.netloc.encode("idna").decode("ascii")
    path, query = (quote(text, safe="/?:@!$&'()*+,;=%~") for text in (split.path, split.query))
    return urlunsplit((split.scheme, place, path, query, ""))


class ImageSource:
    """
    Opens the pictures that requests name.

    Args:
        urls (`"public"`, `"none"` or `"all"`): which URLs are fetched: those of public addresses, none (only
            `data:` URLs), or also those of the server's own network.
        max_bytes (`int`): of a fetched picture, as it is encoded.
        timeout (`float`): seconds for a picture, redirects included.
    """

    def __init__(self, urls: str = "public", max_bytes: int = 20 * 2**20, timeout: float = 10):
        self.urls, self.max_bytes, self.timeout = urls, max_bytes, timeout

    def open(self, source: Any) -> Image.Image:
        """
        A source of a message as a picture.

        Raises:
            ImageError: if there is no picture, or none that can be used.
            ForbiddenAddressError: if it is a file, or a URL that is not to be fetched.
        """
        if not isinstance(source, str):
            raise ForbiddenAddressError("A picture is a URL.")
        shown = repr(source[:80])
        if source.startswith("data:"):
            data = read_image(source)
        elif not source.startswith(SCHEMES):
            raise ForbiddenAddressError(f"{shown} is no data:, http: or https: URL.")
        elif self.urls == "none":
            raise ForbiddenAddressError(f"{shown}: this server fetches no pictures; send a data: URL.")
        else:
            data = self._fetch(source)
        return load_rgb_image(data)[0]

    def _fetch(self, url: str) -> bytes:
        deadline = time.monotonic() + self.timeout
        backend = PublicNetwork() if self.urls == "public" else None
        with httpcore.ConnectionPool(network_backend=backend) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                if not url.startswith(SCHEMES):
                    raise ForbiddenAddressError(f"It is redirected to {url[:80]!r}, which is no http: or https: URL.")
                try:
                    status, location, data = self._get(pool, in_ascii(url), deadline)
                except (httpcore.TimeoutException, TimeoutError) as error:
                    raise ImageError("missing", f"it did not come within {self.timeout:g} seconds.") from error
                except ForbiddenAddressError:
                    raise
                # httpcore lets errors of URLs and of sockets through as they are
                except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
                    raise ImageError("missing", f"it cannot be fetched: {error}") from error
                if location is None:
                    if status != 200:
                        raise ImageError("missing", f"it cannot be fetched: status {status}.")
                    return data
                url = urljoin(url, location)
        raise ImageError("missing", f"it is redirected more than {MAX_REDIRECTS} times.")

    def _get(self, pool: httpcore.ConnectionPool, url: str, deadline: float) -> tuple[int, str | None, bytes]:
        left = max(deadline - time.monotonic(), 0.01)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), left)
        headers = {"User-Agent": "aligngpt", "Accept": "image/*"}
        with pool.stream("GET", url, headers=headers, extensions={"timeout": timeouts}) as response:
            for name, value in response.headers:
                if name.lower() == b"location" and 300 <= response.status < 400:
                    return response.status, value.decode("ascii", "replace"), b""
            data = bytearray()
            for chunk in response.iter_stream():
                data += chunk
                if len(data) > self.max_bytes:
                    raise ImageError("unreadable", f"it has more than {self.max_bytes} bytes.")
                if time.monotonic() > deadline:
                    raise TimeoutError
            return response.status, None, bytes(data)
