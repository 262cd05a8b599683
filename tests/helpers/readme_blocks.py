"""Run a page's Python, block after block in one namespace, where no hub can be reached.

`gpt2` is a tiny random model in a folder of that name, which Hugging Face's loaders prefer to the hub.
Used by tests, and on its own beside an installed wheel: python tests/helpers/readme_blocks.py README.md.
"""

import re
import shutil
import sys
from pathlib import Path

import torch


def python_blocks(readme: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def make_tiny_gpt2(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<|endoftext|>", "The", "capital", "of", "France", "is", "Paris", "Berlin"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = "<|endoftext|>"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=32, **ids)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def make_tiny_baevski18(folder: Path) -> None:
    """fairseq's tiny checkpoint under the published archive's name."""
    data = Path(__file__).parents[1] / "data" / "baevski18"
    folder.mkdir()
    shutil.copyfile(data / "tiny_fairseq_args.pt", folder / "model.pt")
    shutil.copyfile(data / "dict.txt", folder / "dict.txt")


def run(readme: Path) -> dict[str, object]:
    namespace: dict[str, object] = {}
    for number, block in enumerate(python_blocks(readme), start=1):
        exec(compile(block, f"{readme.name} block {number}", "exec"), namespace)
    return namespace


if __name__ == "__main__":
    run(Path(sys.argv[1]))
    print("the README's Python ran")
