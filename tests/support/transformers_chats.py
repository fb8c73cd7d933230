"""Writes chats as transformers does; run by an interpreter that has it.

Reads one JSON object a line, `template`, `messages` and `options`, and answers
each with `text`, or with `error` where transformers raises.
"""

import json
import sys


def main() -> None:
  import tokenizers
  import transformers

  transformers.logging.set_verbosity_error()
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"<unk>": 0}, "<unk>")
  )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    **json.loads(sys.argv[1]),
  )
  print(transformers.__version__, flush=True)
  for line in sys.stdin:
    asked = json.loads(line)
    try:
      text = tokenizer.apply_chat_template(
        asked["messages"],
        chat_template=asked["template"],
        tokenize=False,
        **asked["options"],
      )
      answer = {"text": text}
    except Exception as error:  # whatever a template makes it raise
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
  main()
