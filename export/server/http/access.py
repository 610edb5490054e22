"""Who may ask: the key, and which addresses a server without one may have."""

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence

from compressor.errors import VtcompressError
from export.server.refusal import RefusedError

LEAST_KEY, MOST_KEY = 16, 4096
_KEY = re.compile(r"[!-~]+")
_BEARER = b"bearer "
REMEDY = "python3 -c 'import secrets; print(secrets.token_urlsafe())' prints one"


def check_key(key: str) -> None:
    """Refuse a key that could be guessed, or that no header holds.

    Raises:
        VtcompressError: says what a key is.
    """
    if not LEAST_KEY <= len(key) <= MOST_KEY or not _KEY.fullmatch(key):
        raise VtcompressError(
            f"API key: {LEAST_KEY} to {MOST_KEY:,} visible ASCII characters are needed, "
            f"{len(key):,} were given; {REMEDY}"
        )


def bound_sockets(host: str, port: int, *, keyed: bool) -> list[socket.socket]:
    """Return sockets that are bound and do not listen yet.

    Args:
        host: name or address.
        port: 0: any that is free.
        keyed: whether there is a key. Without one only addresses of this machine are taken.

    Raises:
        VtcompressError: there is no such host, it can be reached from elsewhere, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise VtcompressError(
            f"host {host}: no such address ({error}); give a name or an address of this machine, such as "
            "127.0.0.1"
        ) from None
    places = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    if not keyed and not all(_is_loopback(str(address[0])) for _, address in places):
        raise VtcompressError(
            f"host {host}: can be reached from other machines, so an API key is needed; {REMEDY}"
        )
    sockets: list[socket.socket] = []
    try:
        for family, place in places:
            one = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Any port that is free is the same one for all addresses.
            chosen = port if len(sockets) == 1 else sockets[0].getsockname()[1]
            one.bind((place[0], chosen, *place[2:]))
    except OSError as error:
        for one in sockets:
            one.close()
        reason = error.strerror or str(error)
        raise VtcompressError(f"{host}, port {port}: {reason}; choose another") from None
    return sockets


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Access:
    """Lets requests in.

    Args:
        key: that they must have; None: all are let in that name a host of this machine.
    """

    def __init__(self, key: str | None) -> None:
        self._digest = None if key is None else hashlib.sha256(key.encode()).digest()

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Refuse a request without the key.

        Where there is no key, refuse one that names another host: a page of a stranger, open in a browser on
        this machine, may have led its own name here.

        Raises:
            RefusedError: 401 or 403.
        """
        if self._digest is None:
            self._check_host(headers)
            return
        given = next((value for name, value in headers if name == b"authorization"), b"")
        key = given[len(_BEARER) :].strip() if given.lower().startswith(_BEARER) else b""
        # Digests have one length, and are compared in one time.
        if not hmac.compare_digest(hashlib.sha256(key).digest(), self._digest):
            raise RefusedError(
                401,
                "an API key is needed, as Authorization: Bearer KEY"
                if not key
                else "a wrong API key",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    @staticmethod
    def _check_host(headers: Sequence[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            if name != b"host":
                continue
            host = value.decode("latin-1").strip().lower()
            host = re.sub(r":\d*$", "", host) if not host.endswith("]") else host
            if host != "localhost" and not _is_loopback(host.strip("[]")):
                raise RefusedError(403, "this server answers its own machine alone; ask localhost")
