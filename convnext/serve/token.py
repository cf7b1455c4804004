"""The token that clients must send: which tokens are valid, how they are compared, and when to warn that there is none."""

import hmac
import ipaddress
from collections.abc import Mapping

from convnext.errors import UsageError

VARIABLE = "CONVNEXT_TOKEN"


def given_token(option: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the token of the command line, else of the environment, without surrounding white space; None if neither has one.

    An empty variable counts as given: whoever sets it intends a token, and click would ignore it.

    Raises UsageError as `clean` does.
    """
    return clean(environment.get(VARIABLE) if option is None else option)


def clean(token: str | None) -> str | None:
    """Return the token without surrounding white space, such as the newline of a secret that `echo` wrote.

    Raises UsageError if nothing remains, or for characters that no header can carry.
    """
    if token is None:
        return None
    stripped = token.strip()
    if not stripped:
        raise UsageError(f"the token is empty, so that everyone could use the service: give --token or {VARIABLE} a value, or neither")
    if any(letter.isspace() or not (letter.isprintable() or "\udc80" <= letter <= "\udcff") for letter in stripped):
        raise UsageError("the token has white space or control characters in it, which no client can send: choose another one")
    return stripped


def is_right(sent: str, token: str) -> bool:
    """Return whether a client sent the token, in a time that does not depend on where they differ.

    A header consists of bytes, decoded as Latin-1. curl and most clients send a token's UTF-8, Python's requests its Latin-1.
    """
    received = sent.encode("latin-1", "replace")
    encodings = [token.encode("utf-8", "surrogateescape")]
    if all(ord(letter) < 256 for letter in token):
        encodings.append(token.encode("latin-1"))
    equal = [hmac.compare_digest(received, one) for one in encodings]
    return any(equal)


def is_open_to_others(address: str) -> bool:
    """Return whether other machines can reach that numeric address of a listening socket."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return not (mapped or parsed).is_loopback
