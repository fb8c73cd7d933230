"""Secrets of sessions, made from that of their pool.

The key of a session is its name, which attempt at its episode it is, and a
digest that only the gateway can make. It is kept nowhere, and sessions of a
gateway that was started anew keep theirs. An episode that is given out once
more has another key, so that whoever played it before does not speak in the
session of whoever plays it now.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from typing import NamedTuple

from steppo_jax.rollout import pool_file


class Opened(NamedTuple):
  """The session that a request may use.

  Attributes:
    uid: Its name, and that of its episode.
    attempt: Which attempt at the episode it is; see `pool.Ticket`.
  """

  uid: str
  attempt: int


class Keys:
  """Makes and checks the keys of sessions."""

  def __init__(self, pool: str | os.PathLike | None):
    """Reads the secret of a pool, or makes it.

    Args:
      pool: Its file; None for keys that no other gateway opens sessions for.

    Raises:
      RuntimeError: it cannot be read or written.
    """
    self._secret = secrets.token_bytes(32)
    if pool is not None:
      self._secret = pool_file.secret(pool)

  def of(self, uid: str, attempt: int) -> str:
    """The key of a session, which clients send as their API key."""
    return f"{uid}.{self._token(uid, attempt)}"

  def _token(self, uid: str, attempt: int) -> str:
    text = f"{uid}.{attempt}".encode()
    digest = hmac.digest(self._secret, text, hashlib.sha256)
    told = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return f"{attempt}-{told}"

  def opened(self, key: str, named: str | None = None) -> Opened | None:
    """The session that a key opens, None if it opens none.

    Args:
      key: What a client sent: the key, or the part behind the name.
      named: The session that the client names otherwise; the key has to be
        that session's.
    """
    uid, _, token = key.rpartition(".")
    uid = uid or (named or "")
    attempt = re.match(r"[1-9][0-9]{0,8}(?=-)", token)
    if not uid or attempt is None or named not in (None, uid):
      return None
    found = Opened(uid, int(attempt[0]))
    right = hmac.compare_digest(
      token.encode("utf-8", "replace"), self._token(*found).encode()
    )
    return found if right else None

  def sent(
    self,
    key: str,
    path: str | None,
    header: str | None,
    is_known: Callable[[str], bool],
  ) -> Opened | None:
    """The session that the key of a request opens, None if it opens none.

    Args:
      key: What the client sent; see `opened`.
      path: The session that the address names, None for none. It has to be the
        key's own.
      header: What X-Session-ID says, None without. A session that is known has
        to be the key's own as well; any other name is the client's, which a
        whole key overrules.
      is_known: Whether there is a session of a name.
    """
    found = self.opened(key, path or header)
    if found is None and path is None and not is_known(header or ""):
      return self.opened(key)
    return found
