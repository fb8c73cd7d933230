"""Weights that are sent to a server: whole, or not loaded."""

import asyncio
import contextlib
import hashlib

import cut_wires
import httpx
import jax
import numpy as np
import pytest
import weight_servers
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from steppo_jax.models import lora
from steppo_jax.models.options import LoraConfig
from steppo_jax.pretrained import handed_out
from steppo_jax.serving import answers
from steppo_jax.serving.engines import connection, servers, uploads

HEADERS = {"Authorization": f"Bearer {weight_servers.KEY}"}


@pytest.fixture(scope="module")
def served():
  with weight_servers.serving() as (found,):
    yield found


@pytest.fixture
def client(served):
  with httpx.Client(
    base_url=served.url, headers=HEADERS, verify=False, timeout=60
  ) as made:
    yield made


def file_of(folder, params):
  """A policy's file, and its digest."""
  path = folder / "policy.safetensors"
  handed_out.write(path, params)
  return path, hashlib.sha256(path.read_bytes()).hexdigest()


def announce(client, digest, size):
  return client.post("/weights", json={"sha256": digest, "bytes": size})


def append(client, digest, offset, data):
  return client.patch(
    f"/weights/{digest}", content=data, headers={"Upload-Offset": str(offset)}
  )


def load(client, digest, version):
  return client.post(f"/weights/{digest}/load", json={"version": version})


def test_an_upload_goes_on_where_it_broke_off(served, tmp_path):
  path, digest = file_of(tmp_path, worlds.policy(11))
  size = path.stat().st_size
  with (
    cut_wires.wire(served.url) as wire,
    contextlib.closing(
      connection.Connection(wire.url, key=weight_servers.KEY, seconds=60)
    ) as made,
  ):
    server = servers.PolicyServer(made, {})
    wire.cut = [40_000, 60_000, 20_000]
    package = servers.Package(path, digest)
    server.send(package)
    assert wire.cut == []
    # Each time at most what was under way is sent again, and some heads.
    assert size < wire.passed < size + 3 * (1 << 16) + 10_000
    server.use(package, 17)
  assert served.engine.version == 17
  assert served.weights.digest == digest


def test_a_file_that_is_not_whole_is_not_loaded(served, client, tmp_path):
  path, digest = file_of(tmp_path, worlds.policy(12))
  data, before = path.read_bytes(), served.engine.version
  assert announce(client, digest, len(data)).json()["offset"] == 0
  half = append(client, digest, 0, data[: len(data) // 2]).json()
  assert half == {
    "sha256": digest, "ready": False, "offset": len(data) // 2,
    "bytes": len(data),
  }  # fmt: skip
  assert load(client, digest, 5).status_code == 404
  # From another place than where it ended, and more than was announced.
  found = append(client, digest, 0, data[:10])
  assert (found.status_code, found.json()["error"]["code"]) == (
    409, "wrong_offset",
  )  # fmt: skip
  assert append(client, digest, len(data) // 2, data).status_code == 400
  # The last byte is wrong.
  end = data[len(data) // 2 : -1] + bytes([data[-1] ^ 1])
  found = append(client, digest, len(data) // 2, end)
  assert (found.status_code, found.json()["error"]["code"]) == (
    422, "checksum_mismatch",
  )  # fmt: skip
  assert load(client, digest, 5).status_code == 404
  assert client.get(f"/weights/{digest}").status_code == 404
  assert served.engine.version == before


def test_a_file_that_is_no_policy_of_the_model_is_refused(
  served, client, tmp_path
):
  wide = {"embedding": np.zeros((3, 4), np.float32)}
  whole = file_of(tmp_path, wide)[0].read_bytes()
  for data, told in (
    (b"not a file", "safetensors"),
    (whole, "the weights are of another model"),
  ):
    digest = hashlib.sha256(data).hexdigest()
    announce(client, digest, len(data))
    found = append(client, digest, 0, data)
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "invalid_weights"
    assert told in found.json()["error"]["message"]
    assert load(client, digest, 1).status_code == 404


def test_adapters_of_another_base_are_refused(client, tmp_path):
  for seed, status in ((0, 200), (5, 400)):
    params = lora.add(
      worlds.policy(seed), LoraConfig(rank=2), jax.random.key(1)
    )
    path, digest = file_of(tmp_path, params)
    data = path.read_bytes()
    assert len(data) < client.get("/weights").json()["largest"] / 100
    announce(client, digest, len(data))
    found = append(client, digest, 0, data)
    assert found.status_code == status, found.text
  assert "belong to another model" in found.json()["error"]["message"]


def test_bounds_and_keys(served, client):
  digest = "0" * 64
  most = client.get("/weights").json()["largest"]
  assert announce(client, digest, most + 1).status_code == 413
  assert announce(client, "x", 5).status_code == 400
  assert announce(client, digest, 0).status_code == 400
  assert append(client, "nothing", 0, b"a").status_code == 404
  announce(client, digest, 5)
  assert append(client, digest, "-1", b"a").status_code == 400
  assert announce(client, digest, 6).status_code == 409
  # Of more than two the oldest is given up.
  for other in ("1" * 64, "2" * 64):
    announce(client, other, 5)
  assert client.get(f"/weights/{digest}").status_code == 404
  assert client.get(f"/weights/{'2' * 64}").status_code == 200
  for method, path in (
    ("GET", "/weights"), ("POST", "/weights"), ("PATCH", f"/weights/{digest}"),
    ("GET", f"/weights/{digest}"), ("POST", f"/weights/{digest}/load"),
  ):  # fmt: skip
    found = httpx.request(method, served.url + path, verify=False)
    assert found.status_code == 401


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_right_in_the_end_is_the_file(tmp_path_factory, data):
  """Pieces that break off, come twice, overlap or are changed on their way."""
  text = data.draw(st.binary(min_size=1, max_size=40))
  digest = hashlib.sha256(text).hexdigest()
  path = tmp_path_factory.mktemp("upload") / "file"
  upload = uploads.Upload(digest, len(text), path)
  for _ in range(data.draw(st.integers(1, 8))):
    offset = data.draw(st.integers(0, len(text)))
    part = text[offset : offset + data.draw(st.integers(0, 50))]
    if part and data.draw(st.booleans()):
      at = data.draw(st.integers(0, len(part) - 1))
      part = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
    cut = data.draw(st.booleans())

    async def parts(part=part, cut=cut):
      yield part[:7]
      if cut:
        raise ConnectionError("gone")
      yield part[7:]

    before = upload.received
    with contextlib.suppress(ConnectionError, answers.Fault):
      asyncio.run(upload.append(offset, parts()))
    if offset != before:
      assert upload.received == before
  there = path.read_bytes()[: upload.received]
  assert len(there) == upload.received
  assert upload.right == (there == text)


def test_who_takes_over_an_upload_is_the_only_one_who_writes(tmp_path):
  """A sender that is thought lost, and is not."""
  text = bytes(range(50))

  async def both():
    digest = hashlib.sha256(text).hexdigest()
    upload = uploads.Upload(digest, len(text), tmp_path / "file")
    goes_on = asyncio.Event()

    async def first():
      yield b"-" * 20
      await goes_on.wait()
      yield b"-" * 30

    async def second():
      yield text[:30]
      goes_on.set()
      await asyncio.sleep(0.01)
      yield text[30:]

    late = asyncio.create_task(upload.append(0, first()))
    await asyncio.sleep(0.01)
    await upload.append(0, second())
    await late
    return upload

  upload = asyncio.run(both())
  assert upload.whole
  assert upload.right
