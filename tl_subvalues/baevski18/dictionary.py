"""fairseq's dict.txt, and a tokenizer made of it.

Text is WikiText-103's: words between white space, `</s>` at the end of each line and before the first. The four special
words are not in the file: ids 0 `<s>`, 1 `<pad>`, 2 `</s>`, 3 `<unk>`; line k, counted from 0, is word k + 4.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tl_subvalues.errors import UnknownWordsWarning, shown, shown_value

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_OVERWRITE = "#fairseq:overwrite"
# What Python's str.split (fairseq's) takes for white space and the tokenizers library does not.
_SEPARATORS = "[\x1c\x1d\x1e\x1f]"


def read_dictionary(path: str | Path) -> list[str]:
    """All words of a dict.txt in order of their ids, the four special ones first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no `word count`, or a word that stands twice; it names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: there is no such dictionary.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)}: not a dictionary, for it is not UTF-8 text.") from error
    words = list(SPECIALS)
    ids = {word: i for i, word in enumerate(words)}
    lines = text.split("\n")  # a word may hold what str.splitlines takes for the end of a line
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        line = line.rstrip()
        overwrites = line.endswith(f" {_OVERWRITE}")
        word, _, count = line.removesuffix(f" {_OVERWRITE}").rpartition(" ")
        if not re.fullmatch(r"-?\d+", count):
            raise ValueError(f"{shown(path)}: line {number} is {shown_value(line)}, not a word and its count.")
        if word in ids and not overwrites:
            raise ValueError(f"{shown(path)}: line {number} holds {shown_value(word)} a second time.")
        if word in ids:  # the later entry takes the word, the earlier one keeps its id under a name of its own
            earlier = f"{word}{_OVERWRITE}{number}"
            if earlier in ids:
                raise ValueError(f"{shown(path)}: line {number} holds {shown_value(word)} in a way that is taken.")
            words[ids[word]], ids[earlier] = earlier, ids[word]
        ids[word] = len(words)
        words.append(word)
    return words


class WikiTextTokenizer(PreTrainedTokenizerFast):
    """Words between white space; warns, once a call and by name, of words that are read as `<unk>`."""

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Token ids and masks of one text or several."""
        self._warn_of_unknown_words(text)
        return super().__call__(text, *args, **kwargs)

    def encode(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        """Token ids of one text."""
        self._warn_of_unknown_words(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnknownWordsWarning)
            return super().encode(text, *args, **kwargs)

    def _warn_of_unknown_words(self, text: Any) -> None:
        texts = [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []
        words = [word for one in texts if isinstance(one, str) for word in one.split()]
        unknown = dict.fromkeys(word for word in words if self.backend_tokenizer.token_to_id(word) is None)
        if unknown:
            named = ", ".join(shown_value(word) for word in list(unknown)[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            warnings.warn(
                f"not in the model's vocabulary, and read as '<unk>': {named}{more}.", UnknownWordsWarning, stacklevel=3
            )


def make_tokenizer(words: list[str], *, bos_token: str = "</s>", n_ctx: int | None = None) -> WikiTextTokenizer:
    """A tokenizer with these words in order of their ids; `bos_token` goes before a text, and a newline is `</s>`."""
    bos, pad, eos, unk = words[SPECIALS.index(bos_token)], *words[1:4]  # by id: a dictionary may reuse their names
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk))
    backend.normalizer = Sequence([Replace("\n", f" {eos} "), Replace(Regex(_SEPARATORS), " ")])
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, words.index(bos))]
    )
    roles = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    specials = {role: AddedToken(word, single_word=True) for role, word in roles.items()}
    return WikiTextTokenizer(
        tokenizer_object=backend,
        name_or_path="baevski18",  # TransformerLens looks for one, and would read there a tokenizer that adds no BOS
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
        model_max_length=n_ctx or int(1e30),
        **specials,
    )
