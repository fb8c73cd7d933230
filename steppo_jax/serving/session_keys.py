"""Secrets of sessions, made from that of their pool.

The key of a session is its name and a digest that only the gateway can make. It
is kept nowhere, and sessions of a gateway that was started anew keep theirs.
"""

import base64
import hashlib
import hmac
import os
import secrets

from steppo_jax.rollout import pool_file


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

  def of(self, uid: str) -> str:
    """The key of a session, which clients send as their API key."""
    return f"{uid}.{self._token(uid)}"

  def _token(self, uid: str) -> str:
    digest = hmac.digest(self._secret, uid.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")

  def uid(self, key: str, named: str | None = None) -> str | None:
    """The session that a key opens, None if it opens none.

    Args:
      key: What a client sent: the key, or the part behind the name.
      named: The session that the client names otherwise; the key has to be
        that session's.
    """
    uid, _, token = key.rpartition(".")
    uid = uid or (named or "")
    if named is not None and uid != named:
      return None
    right = hmac.compare_digest(
      token.encode("utf-8", "replace"), self._token(uid).encode()
    )
    return uid if right and uid else None
