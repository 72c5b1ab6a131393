"""Ports that are taken or refused before anything else is made, with a sentence that says what to do."""

import errno
import socket
import sys


class PortTaken(Exception):  # noqa: N818 -- named for what happened
    """A port is in use or cannot be bound; the message says what to do."""


def listening_on(address: str, flag: str) -> socket.socket:
    """A listening socket on HOST:PORT; port 0 lets the system choose. Raises PortTaken."""
    bound = bound_to(address, flag)
    try:
        bound.listen(1_024)
    except OSError as error:
        bound.close()
        raise PortTaken(port_sentence(address, flag, error)) from None
    bound.setblocking(False)
    return bound


def bound_to(address: str, flag: str) -> socket.socket:
    """A socket on HOST:PORT that nobody else listens on. Raises PortTaken."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two processes share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
    except (OSError, UnicodeError) as error:
        bound.close()
        raise PortTaken(port_sentence(address, flag, error)) from None
    return bound


def port_sentence(address: str, flag: str, error: OSError | UnicodeError) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    said = f"{address} cannot be bound: {reason}."
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"{said} Another coordinator may be running: stop it, or choose another with {flag} HOST:PORT."
    return f"{said} Choose an address of this machine with {flag} HOST:PORT."
