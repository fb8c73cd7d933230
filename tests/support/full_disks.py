"""Files that take so many bytes and no more, as on a disk that is full."""

import contextlib
import resource


@contextlib.contextmanager
def full_after(size):
  """No file of this process, or of those that it starts, grows beyond it."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
