"""Released models of random weights, as folders with a chat template."""

import jax
import vocabularies

from steppo_jax.models import transformer
from steppo_jax.models.formats import hub


def write(folder, sizes, *, dtype=None):
  """Writes such a folder; `sizes` have at least 410 ids. Returns it."""
  params = transformer.init(sizes, jax.random.key(0))
  hub.save(folder, sizes, params, dtype=dtype)
  return vocabularies.write_folder(
    folder, vocabularies.byte_level(), template=vocabularies.CHATML
  )
