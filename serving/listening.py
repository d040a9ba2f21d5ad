"""Where the server and the page listen."""

import ipaddress
import socket

from aligngpt.processing.command_output import Mistakes


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_port_problems(port: int) -> list[str]:
    """What is wrong with a port that was asked for."""
    return [] if 0 <= port <= 65535 else [f"--port {port}: a port is 0 (any that is free) to 65535."]


def bind(host: str, port: int) -> socket.socket:
    """
    A socket to listen on, before anything slow; 0 is any free port.

    Raises:
        Mistakes: if the address is not this machine's, or the port is taken.
    """
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        if listening is not None:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise Mistakes([f"--host {host} --port {port}: the server cannot listen there: {reason}."]) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """Where a browser or client on this machine finds what listens."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
