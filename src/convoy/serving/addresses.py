"""Fetch an image that a request names by its address (`serve.allow_urls`), from public addresses alone.

Whoever may call the service could otherwise have it read what only its own network reaches, such as a cloud's metadata.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from convoy.serving.answers import Refusal

MOST_REDIRECTS = 3
CHUNK = 2**16


def fetch(url: str, most_bytes: int, seconds: float) -> bytes:
    """Fetch the content at an address.

    Args:
        url: http or https; redirects are followed, and checked likewise.
        most_bytes: largest content.
        seconds: time limit of all.

    Raises:
        Refusal: the address is not public, does not answer with content in time, or the content is too large.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MOST_REDIRECTS + 1):
        try:
            found = _request(url, most_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ssl.SSLError is an OSError
            raise Refusal(422, "fetch_failed", "The address of the image does not answer.") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise Refusal(
        422, "fetch_failed", f"The address of the image redirects more than {MOST_REDIRECTS} times."
    )


def _request(url: str, most_bytes: int, deadline: float) -> bytes | str:
    """Request an address once; return its content, or where it redirects to."""
    parts = urlsplit(url)
    connection = _connection(parts, _remaining(deadline))
    connected = connection.sock  # which `connection` lets go of once it knows that the server will close it
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status in {301, 302, 303, 307, 308} and (target := response.getheader("Location")):
            return target
        if response.status != 200:
            raise Refusal(
                422, "fetch_failed", f"The address of the image answers with the status {response.status}."
            )
        parts_read, size = [], 0
        while chunk := response.read1(CHUNK):
            parts_read.append(chunk)
            size += len(chunk)
            if size > most_bytes:
                raise Refusal(
                    413, "body_too_large", f"The image at the address has more than {most_bytes:,} bytes."
                )
            connected.settimeout(_remaining(deadline))
        return b"".join(parts_read)
    finally:
        connection.close()


def _connection(parts: SplitResult, seconds: float) -> http.client.HTTPConnection:
    """Connect to the very address that was checked: a second look-up of the name could give another."""
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise Refusal(
            422,
            "bad_address",
            "The address of an image must be http://HOST/… or https://HOST/…, without a password.",
        )
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    family, kind, protocol, _, address = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0]
    if not is_public(str(address[0])):
        raise Refusal(
            422, "bad_address", "The address of the image is not public; the service fetches from no other."
        )
    connected = socket.socket(family, kind, protocol)
    connected.settimeout(seconds)
    try:
        connected.connect(address)
        if secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=parts.hostname)
    except BaseException:
        connected.close()
        raise
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = connected
    return connection


def is_public(address: str) -> bool:
    """Check that an IP address belongs to the internet, also one that is wrapped into IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return all(one.is_global and not one.is_multicast for one in (ip, inner) if one is not None)


def _remaining(deadline: float) -> float:
    """Return the seconds that are left.

    Raises:
        TimeoutError: none.
    """
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
