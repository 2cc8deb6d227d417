"""Who may call what. Keys are kept as SHA-256 hashes, so the settings of a service give none away."""

import hashlib
import hmac
from collections.abc import Mapping
from enum import IntEnum

from service.errors import Forbidden, Unauthenticated


class Role(IntEnum):
    """The role that a route asks for; a higher one includes the lower ones."""

    ANYONE = 0
    CALLER = 1
    ADMIN = 2


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Access:
    """Checks the key of a request (``Authorization: Bearer KEY`` or ``X-API-Key: KEY``) against a route's role.

    Without any key set everybody is an admin: the settings allow that on loopback, or when told so.
    """

    def __init__(self, key_hashes: tuple[str, ...], admin_key_hashes: tuple[str, ...]) -> None:
        self.hashes = [(known.encode(), Role.ADMIN) for known in admin_key_hashes]
        self.hashes += [(known.encode(), Role.CALLER) for known in key_hashes]

    def check(self, headers: Mapping[bytes, bytes], role: Role) -> None:
        """
        Raises:
            Unauthenticated: no key, or one that is not known.
            Forbidden: a known key that may not do this.
        """
        if not self.hashes or role is Role.ANYONE:
            return
        given = headers.get(b"authorization", b"")
        is_bearer = given[:7].lower() == b"bearer "
        hashed = hashlib.sha256(given[7:].strip() if is_bearer else headers.get(b"x-api-key", b"")).hexdigest().encode()
        granted = Role.ANYONE
        for known, known_role in self.hashes:  # all of them, so that time tells nothing
            if hmac.compare_digest(known, hashed):
                granted = max(granted, known_role)
        if granted is Role.ANYONE:
            raise Unauthenticated("This route needs an API key.")
        if granted < role:
            raise Forbidden("This route needs an admin key.")
