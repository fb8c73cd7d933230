#!/usr/bin/env bash
# tokenizers 0.23.3: the ids that tokenizer.json gives its added tokens are not read.
#
# Added tokens that the vocabulary does not hold are numbered in their order from the
# end of the vocabulary on, whatever "id" says, without an error or a warning. Seen:
# a file that gives <think> the id 12 is loaded with <think> = 11, because the token
# that had 11 was taken out; saving writes 11 into the file.
# Whoever edits a released tokenizer.json, or keeps control tokens out of it so that
# text cannot spell them, moves the ids of all added tokens behind: the model reads
# another token's row.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
"${PYTHON:-python3}" -m venv "$where/venv"
"$where/venv/bin/pip" install --quiet tokenizers==0.23.3
cat > "$where/see.py" <<'PY'
import json

import tokenizers

letters = {letter: i for i, letter in enumerate("abcdefghij")}
token = lambda content, i: {
  "id": i, "content": content, "special": False, "single_word": False,
  "lstrip": False, "rstrip": False, "normalized": False,
}
added = [token("<start>", 10), token("<end>", 11), token("<think>", 12)]
rules = {
  "version": "1.0", "added_tokens": added,
  "model": {"type": "BPE", "vocab": letters, "merges": []},
}
whole = tokenizers.Tokenizer.from_str(json.dumps(rules))
fewer = dict(rules, added_tokens=[added[0], added[2]])
cut = tokenizers.Tokenizer.from_str(json.dumps(fewer))
print("with all three:", whole.token_to_id("<think>"))
print("file says 12, without <end>:", cut.token_to_id("<think>"))
saved = json.loads(cut.to_str())["added_tokens"]
print("written back:", [(t["content"], t["id"]) for t in saved])
assert whole.token_to_id("<think>") == 12
assert cut.token_to_id("<think>") == 11
assert [t["id"] for t in saved] == [10, 11]
PY
"$where/venv/bin/python" "$where/see.py"
echo "as described"
