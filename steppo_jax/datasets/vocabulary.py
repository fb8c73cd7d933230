"""Makes the tokenizers of the household games and of the other worlds.

    python -m steppo_jax.datasets.vocabulary

writes `household.model`, `scratchpad.model` (the same games, and the words of
`scratchpad`) and `worlds.model` (see `vocabulary_worlds`) into
`steppo_jax/tokenizer/assets` (a second, no input files). The vocabulary of the
games is made for a small model that must copy names:

- a receptacle or object name is one piece with its leading space, and so is
  its number, so that "drawer 12" is the same two ids wherever it stands;
- a verb is one piece, and so is each fixed phrase of the engine's text;
- the 256 byte pieces cover everything else, helped by pieces learned (byte
  pair merges) from a few lines of plain English. Games need none of these.
"""

import argparse
import io
import pathlib

import sentencepiece

from steppo_jax.datasets import vocabulary_worlds
from steppo_jax.envs.household import scratchpad
from steppo_jax.envs.household import text as household_text
from steppo_jax.tokenizer import sentencepiece_tokenizer

VOCAB_SIZE = 576
SCRATCHPAD_VOCAB_SIZE = 712
WORLDS_VOCAB_SIZE = 1760
LARGEST_NUMBER = 40

# Every type of the ALFWorld games; those of generated games are among them.
_RECEPTACLES = """
armchair bathtubbasin bed cabinet cart coffeemachine coffeetable countertop
desk diningtable drawer dresser fridge garbagecan handtowelholder
laundryhamper microwave ottoman safe shelf sidetable sinkbasin sofa
stoveburner toaster toilet toiletpaperhanger towelholder tvstand
"""

_OBJECTS = """
alarmclock apple baseballbat basketball bathtub blinds book boots bowl box
bread butterknife candle cd cellphone chair cloth creditcard cup curtains
desklamp dishsponge egg floorlamp footstool fork glassbottle handtowel
houseplant kettle keychain knife ladle laptop laundryhamperlid lettuce
lightswitch mirror mug newspaper painting pan papertowelroll pen pencil
peppershaker pillow plate plunger poster pot potato remotecontrol saltshaker
scrubbrush showerdoor showerglass sink soapbar soapbottle spatula spoon
spraybottle statue stoveknob teddybear television tennisracket tissuebox
toiletpaper tomato towel vase watch wateringcan window winebottle
"""

NAMES = tuple(sorted({*_RECEPTACLES.split(), *_OBJECTS.split()}))

_VERBS = (
  *("go to", "open", "close", "take", "move", "put", "examine", "use"),
  *("heat", "cool", "clean", "slice", "look", "inventory", "help"),
  *(" from", " to", " with", " in/on"),
)

_TASK_PHRASES = (
  *(" put a", " put some", " put two", " find two", " put a clean"),
  *(" put a hot", " put a cool", " clean some", " heat some", " cool some"),
  *(" and put it in", " and put them in", " look at", " under the"),
  *(" examine the", " with the", " in", " on", "."),
)

_PHRASES = (
  household_text.WELCOME + "\n\n",
  "You are in the middle of a room. Looking quickly around you, you see a",
  "You are in the middle of a room. Looking quickly around you, "
  "you see nothing.",
  "\n\nYour task is to:",
  *(", a", ", and a", ", and", ", you see a", ", you see nothing."),
  *("You arrive at", ". On the", ". The", "On the", "The", " is closed."),
  *(" is open. In it, you see a", " is open. In it, you see nothing."),
  *("You open the", "You close the", "You pick up the", " from the"),
  *("You move the", "You put the", " to the", " in/on the", "You turn on the"),
  *("You heat the", "You cool the", "You clean the", "You sliced the"),
  *(" using the", household_text.NOTHING, "You are facing the"),
  *(". Next to it, you see a", ". Next to it, you see nothing."),
  *("You are carrying: a", "You are not carrying anything."),
  *("There's nothing special about", "This is a", " normal", " hot", " cold"),
  *(" cool", " clean", " sliced", "This", " is on.", " loc"),
  *(". In it, you see a", ". In it, you see nothing."),
  *("\n", "\n\n", "\n> ", "> "),
)

_ENGLISH = """
I need to find it first. Then I will take it and bring it to the right place.
The task asks for two of them, so I have to look for another one.
It is not here. Let me check the next place where it could be.
I have already searched this one, and there was nothing that I could use.
Now that I have the thing in my hand, I should go back and put it there.
Before that it must be clean, hot or cold, so I go where this can be done.
She would like you to turn on the lamp and look at the thing under the light.
What should we do next? There are several places left that we have not seen.
Think about which of these is the most likely one, and try that one first.
You can only carry one thing at a time; put down what you hold before.
Place the washed dish on the table in the kitchen near the white wall.
Pick up the small one that is on the left side of the bed in the bedroom.
Action: Thought: Observation: Available commands: Task: Answer: Yes, No.
"""


def fixed_pieces() -> list[str]:
  """Returns the pieces that are decided here and not learned."""
  numbers = [f" {number}" for number in range(1, LARGEST_NUMBER + 1)]
  names = [f" {name}" for name in NAMES]
  pieces = [
    *_PHRASES,
    household_text.HELP.strip(),
    *_VERBS,
    *_TASK_PHRASES,
    *names,
    *numbers,
  ]
  return list(dict.fromkeys(pieces))


def scratchpad_pieces() -> list[str]:
  """Returns the pieces of games in which thoughts are written down."""
  thoughts = [household_text.THOUGHT, household_text.THOUGHT_END]
  return list(dict.fromkeys([*fixed_pieces(), *thoughts, *scratchpad.words()]))


def train(name: str = "household") -> bytes:
  """Returns the bytes of a model; the same on every run.

  Args:
    name: A key of `tokenizer.BUNDLED`.
  """
  vocab_size, pieces = _VOCABULARIES[name]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_ENGLISH.strip().split("\n")),
    model_writer=model,
    model_type="bpe",
    vocab_size=vocab_size,
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    user_defined_symbols=[p.replace(" ", "▁") for p in pieces()],
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    bos_piece="<bos>",
    eos_piece="<end_of_turn>",
    num_threads=1,
    minloglevel=2,
  )
  return model.getvalue()


# Name: size of the vocabulary, pieces that are decided.
_VOCABULARIES = {
  "household": (VOCAB_SIZE, fixed_pieces),
  "scratchpad": (SCRATCHPAD_VOCAB_SIZE, scratchpad_pieces),
  "worlds": (WORLDS_VOCAB_SIZE, vocabulary_worlds.pieces),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--output", type=pathlib.Path,
    default=sentencepiece_tokenizer.HOUSEHOLD_MODEL.parent,
    help="folder of the models (%(default)s)",
  )  # fmt: skip
  output = parser.parse_args().output
  output.mkdir(parents=True, exist_ok=True)
  for name in _VOCABULARIES:
    path = output / f"{name}.model"
    path.write_bytes(train(name))
    made = sentencepiece_tokenizer.SentencePieceTokenizer(path)
    print(f"{path}: {made.vocab_size} pieces, sha256 {made.digest}")


if __name__ == "__main__":
  main()
