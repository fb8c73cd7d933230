"""The exchange between processes: who is missing is named."""

import contextlib
import socket
import threading
import time

import pytest

from steppo_jax.processes import exchange, frames, hosts, signals


class Party:
  """A server and its clients, in threads of this process."""

  def __init__(self, count, *, limit_s=20.0, silence_s=20.0, failed_s=20.0):
    self.server = exchange.Server(
      "127.0.0.1", 0, count, silence_s=silence_s, failed_s=failed_s
    )
    self.interrupted = [threading.Event() for _ in range(count)]
    self.clients = [
      exchange.Client(
        "127.0.0.1", self.server.port, i, limit_s=limit_s,
        interrupt=lambda _, i=i: self.interrupted[i].set(),
      )
      for i in range(count)
    ]  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for client in self.clients:
      client.close()
    self.server.close(patience_s=1.0)

  def all(self, call, which=None):
    """call(client, index) in a thread each; results or what was raised."""
    which = range(len(self.clients)) if which is None else which
    found = {}

    def one(i):
      try:
        found[i] = call(self.clients[i], i)
      except signals.Stopped as error:
        found[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in which]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
    return found


def test_all_get_the_parts_of_all_in_order():
  with Party(3) as party:
    for turn in range(5):
      whole = [bytes([i]) * (i * 100_000 + turn) for i in range(3)]
      got = party.all(lambda c, i, w=whole: c.gather("x", w[i]))
      assert got == dict.fromkeys(range(3), whole)


@pytest.mark.slow
def test_who_is_late_is_named():
  with Party(3, limit_s=0.5) as party:
    got = party.all(lambda c, i: c.gather("the plan", b""), which=(0, 2))
    for error in (got[0], got[2]):
      assert isinstance(error, exchange.Lost)
      assert "process 1, not there for the plan 0.5 s" in str(error)
    assert all(event.wait(5) for event in party.interrupted)


def test_who_ends_or_leaves_is_named_at_once():
  with Party(3) as party:
    party.clients[1]._sock.shutdown(socket.SHUT_RDWR)
    got = party.all(lambda c, i: c.gather("x", b""), which=(0, 2))
    for i in (0, 2):
      assert "process 1, which has ended" in str(got[i])
  with Party(2) as party:
    party.clients[1].close()
    got = party.all(lambda c, i: c.gather("the rest", b""), which=(0,))
    assert "process 1, which ended before the rest" in str(got[0])


def test_who_fails_tells_the_others_why_before_they_are_broken_off():
  with Party(3) as party:
    party.clients[1].close("no space left", 1)
    got = party.all(lambda c, i: c.gather("x", b""), which=(0, 2))
    for i in (0, 2):
      assert "process 1, which failed: no space left" in str(got[i])
      assert got[i].status == 1
      # It may be about to fail in the same way, and tells of that itself.
      assert not party.interrupted[i].is_set()
  with Party(3, failed_s=0.0) as party:
    party.clients[1].close("no space left", 1)
    assert all(party.interrupted[i].wait(10) for i in (0, 2))


def test_without_the_first_process_it_is_told_why_it_failed():
  orphaned = threading.Event()
  with Party(2) as party:
    party.clients[1]._orphaned = lambda lost: orphaned.set()
    party.clients[0].close("no space left", 1)
    party.server.close(patience_s=0.1)
    assert orphaned.wait(10)
    assert "process 0, which failed: no space left" in str(
      party.clients[1].lost
    )


@pytest.mark.parametrize(
  ("index", "begun", "says", "status"),
  [
    (1, False, "has a process 1 already", 2),
    # It may be the machine that takes the place of one that vanished.
    (1, True, "begun with another process 1", signals.RESTARTABLE),
    (2, True, "2 processes and no process 2", 2),
  ],
)
def test_a_number_that_is_taken_or_none_is_refused(index, begun, says, status):
  refused = []
  with Party(2) as party:
    while len(party.server._clients) < 2:
      time.sleep(0.01)
    if begun:
      party.all(lambda c, i: c.gather("x", b""))
    stranger = exchange.Client(
      "127.0.0.1", party.server.port, index, limit_s=5.0,
      orphaned=refused.append,
    )  # fmt: skip
    with pytest.raises(exchange.Lost, match=says):
      stranger.gather("y", b"")
    stranger.close()
    assert refused[0].status == status
    got = party.all(lambda c, i: c.gather("y", b""))
    assert got == {key: [b"", b""] for key in range(2)}


def test_of_what_differs_only_the_difference_is_told():
  one = {"seed": 1, "env": {"name": "a", "size": 3}, "lr": 0.1}
  other = {"seed": 2, "env": {"name": "a", "size": 4}, "lr": 0.1}
  assert hosts._differing(one, other) == (
    {"env": {"size": 3}, "seed": 1},
    {"env": {"size": 4}, "seed": 2},
  )
  assert hosts._differing(1, 2) == (1, 2)


@pytest.mark.slow
def test_who_is_silent_is_named():
  server = exchange.Server("127.0.0.1", 0, 2, silence_s=4.0)
  client = exchange.Client("127.0.0.1", server.port, 0, limit_s=60.0)
  # As a machine without power: its connection stays, nothing comes.
  with socket.create_connection(("127.0.0.1", server.port)) as mute:
    frames.send(mute, {"kind": "hello", "index": 1})
    with pytest.raises(exchange.Lost, match="process 1, which was silent"):
      client.gather("x", b"")
  client.close()
  server.close()


def test_a_stop_reaches_all_and_what_is_saved_is_agreed_on():
  with Party(2) as party:
    waiting = threading.Thread(
      target=lambda: party.all(lambda c, i: c.gather("x", b""), which=(0,))
    )
    waiting.start()
    party.clients[1].stop()
    waiting.join(20)
    assert not waiting.is_alive()
    assert all(event.wait(5) for event in party.interrupted)
    # What came too late for the stop is stopped as well.
    got = party.all(lambda c, i: c.gather("x", b""), which=(0,))
    assert isinstance(got[0], signals.Stopped)
    assert not isinstance(got[0], exchange.Lost)
    got = party.all(
      lambda c, i: c.gather("stopping", b"%d" % i, after_stop=True)
    )
    assert got == {0: [b"0", b"1"], 1: [b"0", b"1"]}
    # Then they may save together.
    got = party.all(lambda c, i: c.gather("y", b""))
    assert got == {0: [b"", b""], 1: [b"", b""]}


def test_a_stranger_at_the_door_disturbs_nobody():
  with Party(2) as party:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x05" + bytes(7) + b"hello"):
      with socket.create_connection(("127.0.0.1", party.server.port)) as sock:
        sock.sendall(data)
        sock.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
          assert sock.recv(1) == b""
    got = party.all(lambda c, i: c.gather("x", b"1"))
    assert got == {key: [b"1", b"1"] for key in range(2)}


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} .*--host-port"):
      exchange.Server("127.0.0.1", port, 2)


def test_a_server_that_is_not_there_is_named():
  with socket.create_server(("127.0.0.1", 0)) as gone:
    port = gone.getsockname()[1]
  with pytest.raises(
    RuntimeError, match=f"does not answer at 127.0.0.1:{port}"
  ):
    exchange.Client("127.0.0.1", port, 1, limit_s=1.0)


def test_one_process_is_a_run_of_its_own():
  one = hosts.ALONE
  assert one.share(range(5), 2) == [0, 1, 2, 3, 4]
  assert one.gather_json("x", {"a": 1}) == [{"a": 1}]
  assert one.stop_at(3)
  assert not one.stop_at(None)
  one.agree("x", [1, (2, 3)])
  assert one.first("x", lambda: 3) == 3
