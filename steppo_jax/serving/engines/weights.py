"""The endpoints by which a served policy gets other weights.

    GET   /weights               what is served: version, digest, sizes, seed
    POST  /weights               {sha256, bytes}: announces a file
    PATCH /weights/SHA256        its bytes from `Upload-Offset` on
    GET   /weights/SHA256        how many of them are there
    POST  /weights/SHA256/load   {version}: samples with it from now on

A file is prepared when it is whole, while answers go on being sampled. Weights
change between two answers, never inside of one.
"""

import asyncio
import logging
import pathlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Field
from starlette import requests, responses

from steppo_jax import types
from steppo_jax.serving import answers, http
from steppo_jax.serving import scheduler as scheduler_lib
from steppo_jax.serving.engines import uploads

# Versions whose digests are known: answers of older ones are long sent.
_REMEMBERED = 64
_log = logging.getLogger(__name__)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Announced(pydantic.BaseModel):
  """`POST /weights`."""

  sha256: Digest
  bytes: Annotated[int, Field(ge=1)]


class Load(pydantic.BaseModel):
  """`POST /weights/SHA256/load`."""

  version: Annotated[int, Field(ge=0, lt=1 << 53)]


class Weights:
  """The weights of an engine, which a client may replace.

  Attributes:
    digest: SHA-256 of the file whose weights are sampled with; None for those
      that the server began with.
  """

  def __init__(
    self,
    engine: types.Engine,
    scheduler: scheduler_lib.Scheduler,
    read: Callable[[pathlib.Path], Any],
    facts: Mapping[str, Any],
    folder: pathlib.Path,
    *,
    largest: int,
  ):
    """Those that the server began with.

    Args:
      engine: Samples.
      scheduler: Whose engine it is.
      read: Makes a policy's parameters of a file; raises ValueError for one
        that is not of this model.
      facts: What clients have to agree with, such as sizes and seed.
      folder: Where files are kept until they are read.
      largest: Most bytes of a file.
    """
    self._engine, self._scheduler = engine, scheduler
    self._read, self._facts = read, dict(facts)
    self._uploads = uploads.Uploads(folder, largest=largest)
    self._prepared: dict[str, Any] = {}
    self._changing = asyncio.Lock()
    self._current: Any = None
    self.digest: str | None = None
    self._digests: dict[int, str] = {}

  def digest_of(self, version: int) -> str | None:
    """The digest of the last weights of a version; None for those at the start.

    An answer is sent a little after it was sampled, when other weights may be
    there already: ask with the version that the answer names.
    """
    return self._digests.get(version)

  def routes(self, route: Callable) -> list[Any]:
    """The endpoints.

    Args:
      route: Makes one of a method, a path and a handler; see `app`.
    """
    return [
      route("GET", "/weights", self._only_server(self.served)),
      route("POST", "/weights", self._only_server(self.announce)),
      route("GET", "/weights/{digest}", self._only_server(self.show)),
      route("PATCH", "/weights/{digest}", self._only_server(self.append)),
      route("POST", "/weights/{digest}/load", self._only_server(self.load)),
    ]

  def _only_server(self, handler: Callable) -> Callable:
    async def handle(request: requests.Request) -> responses.Response:
      if request.state.opened is not None:
        raise answers.Fault(
          401, "weights are sent with the server's key, not with a session's",
          "invalid_api_key",
        )  # fmt: skip
      try:
        return await handler(request)
      except OSError as error:
        raise answers.Fault(
          507, f"the file cannot be written: {error}", "insufficient_storage"
        ) from error

    return handle

  async def served(self, request: requests.Request) -> responses.Response:
    """`GET /weights`."""
    return responses.JSONResponse(
      self._facts
      | {"version": self._engine.version, "sha256": self.digest}
      | {"slots": self._engine.num_slots, "largest": self._uploads.largest}
    )

  async def announce(self, request: requests.Request) -> responses.Response:
    """`POST /weights`."""
    form = await http.read(request, Announced)
    if not self._has(form.sha256):
      self._uploads.begin(form.sha256, form.bytes)
    return self._told(form.sha256)

  async def show(self, request: requests.Request) -> responses.Response:
    """`GET /weights/SHA256`."""
    digest = request.path_params["digest"]
    async with self._changing:  # A whole file may be being read.
      return self._told(digest)

  def _has(self, digest: str) -> bool:
    return digest in self._prepared or digest == self.digest

  def _told(self, digest: str) -> responses.Response:
    if self._has(digest):
      return responses.JSONResponse({"sha256": digest, "ready": True})
    upload = self._find(digest)
    return responses.JSONResponse(
      {"sha256": digest, "ready": False, "offset": upload.received,
       "bytes": upload.size}
    )  # fmt: skip

  def _find(self, digest: str) -> uploads.Upload:
    upload = self._uploads.get(digest)
    if upload is None:
      raise answers.Fault(
        404, f"no weights {digest[:64]!r} were announced here", "not_found"
      )
    return upload

  async def append(self, request: requests.Request) -> responses.Response:
    """`PATCH /weights/SHA256`."""
    digest = request.path_params["digest"]
    if self._has(digest):
      return self._told(digest)
    upload = self._find(digest)
    told = request.headers.get("upload-offset", "")
    if not (told.isascii() and told.isdigit() and len(told) < 20):
      raise answers.Fault(
        400, "the header Upload-Offset must be 0 or more",
        "invalid_request_error", "Upload-Offset",
      )  # fmt: skip
    await upload.append(int(told), _parts(request))
    if upload.whole:
      async with self._changing:
        if not self._has(digest):
          await self._prepare(upload)
    return self._told(digest)

  async def _prepare(self, upload: uploads.Upload) -> None:
    """Reads a file that is whole; it is gone afterwards."""
    try:
      if not upload.right:
        raise answers.Fault(
          422, "the file has another SHA-256 than it was announced with: send "
          "it again", "checksum_mismatch",
        )  # fmt: skip
      read = lambda: self._engine.prepare(self._read(upload.path))
      made = await asyncio.to_thread(read)
    except ValueError as error:
      raise answers.Fault(400, str(error), "invalid_weights") from error
    finally:
      self._uploads.drop(upload.sha256)
    # Only the newest: memory has room for one beside the current.
    self._prepared = {upload.sha256: made}

  async def load(self, request: requests.Request) -> responses.Response:
    """`POST /weights/SHA256/load`."""
    digest = request.path_params["digest"]
    form = await http.read(request, Load)
    async with self._changing:
      if not self._has(digest):
        raise answers.Fault(
          404, f"no weights {digest[:64]!r} are ready here: send them",
          "not_found",
        )  # fmt: skip
      if (digest, form.version) != (self.digest, self._engine.version):
        made = self._prepared.pop(digest, self._current)
        await asyncio.to_thread(self._swap, made, digest, form.version)
        self._current, self.digest = made, digest
        _log.info("samples with weights %s of %d updates", digest[:12],
                  form.version)  # fmt: skip
    return responses.JSONResponse({"sha256": digest, "version": form.version})

  def _swap(self, made: Any, digest: str, version: int) -> None:
    with self._scheduler.held():
      if not self._scheduler.alive:
        raise answers.Fault(503, "the engine has failed", "server_error")
      self._engine.swap(made, version)
      self._digests.pop(version, None)
      self._digests[version] = digest
      if len(self._digests) > _REMEMBERED:
        del self._digests[next(iter(self._digests))]


async def _parts(request: requests.Request) -> AsyncIterator[bytes]:
  """A body as it comes.

  Raises:
    http.Gone: the client has hung up, or sends nothing any more.
  """
  async for part in http.body(request):
    yield part
