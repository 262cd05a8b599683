"""demos/reproduce.py on random models with the layers and heads of GPT2-large and Llama-7B."""

from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from helpers import zoo
from helpers.demos import demo

import tl_subvalues as tlsv

pytestmark = [pytest.mark.bridge, pytest.mark.slow, pytest.mark.any_release]
TOKENS, TARGET, WORDS = [3, 9, 17, 5, 11], 7, 40


def random_model(name: str) -> Any:
    if name == "gpt2-large":
        sizes = {"n_layer": 36, "n_head": 20, "n_embd": 40, "n_inner": 1024, "n_positions": 32}
        config = transformers.GPT2Config(vocab_size=WORDS, **sizes)
    else:
        sizes = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 64, "intermediate_size": 6784}
        config = transformers.LlamaConfig(vocab_size=WORDS, max_position_embeddings=32, **sizes)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    config.architectures = [type(made).__name__]
    zoo.randomise(made, 0, std=0.05)
    return zoo.bridge_class().boot_transformers(name, hf_model=made, tokenizer=zoo.tokenizer(), device="cpu")


def by_hand(model: Any, cache: Any, name: str, what: str) -> float:
    """The authors' reading of one number, from the cache and the modules."""
    hf, gpt2 = model.original_model, name == "gpt2-large"
    norm = hf.transformer.ln_f if gpt2 else hf.model.norm
    final = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"][0, -1]
    centred = final - final.mean() if gpt2 else final
    scale = (centred.pow(2).mean() + (1e-5 if gpt2 else 1e-6)).sqrt()

    def log_p(x: torch.Tensor) -> float:
        return ((norm.weight * x / scale) @ hf.lm_head.weight.T).log_softmax(-1)[TARGET].item()

    def added(layer: int, sublayer: str, v: torch.Tensor) -> float:
        x = cache[f"blocks.{layer}.hook_resid_pre"][0, -1]
        x = x if sublayer == "attn" else x + cache[f"blocks.{layer}.hook_attn_out"][0, -1]
        return log_p(x + v) - log_p(x)

    if what in ("attention", "FFN"):
        kind = "attn" if what == "attention" else "mlp"
        return sum(added(i, kind, cache[f"blocks.{i}.hook_{kind}_out"][0, -1]) for i in range(model.cfg.n_layers))
    layer, _, index = what[1:].replace("N", "H").partition("H")
    if "N" in what:
        m = cache[f"blocks.{layer}.mlp.hook_post"][0, -1, int(index)]
        return added(int(layer), "mlp", m * model.blocks[int(layer)].mlp.W_out[int(index)])
    z = cache[f"blocks.{layer}.attn.hook_z"][0, -1].reshape(model.cfg.n_heads, -1)[int(index)]
    return added(int(layer), "attn", z @ model.blocks[int(layer)].attn.W_O[int(index)])


@pytest.mark.parametrize("name", ["gpt2-large", "llama-7b"])
def test_both_readings(name: str) -> None:
    """Exact is what the trace says; the authors' is that of their formula; of Llama they are one."""
    script = demo("reproduce.py")
    model, case = random_model(name), script.CASES[name]
    with torch.no_grad():
        table = script.measured(model, case, TOKENS, TARGET).set_index("what")
        _, cache = model.run_with_cache(torch.tensor([TOKENS]))
    assert table.index.tolist() == list(case.expected)
    assert table["authors_report"].tolist() == list(case.expected.values())
    trace = tlsv.trace(model, TOKENS, TARGET)
    sums = trace.layers().groupby("sublayer")["log_prob_increase"].sum()
    rows = [trace.heads(), trace.ffn_neurons(top=None)]
    exact = pd.concat(rows).set_index("label")["log_prob_increase"]
    exact = {"attention": sums["attn"], "FFN": sums["mlp"], **exact}
    for what, row in table.iterrows():
        assert row["exact"] == pytest.approx(exact[what], abs=1e-6)
        assert row["authors"] == pytest.approx(by_hand(model, cache, name, what), abs=2e-5), what
    apart = (table["exact"] - table["authors"]).abs().max()
    assert apart > 1e-3 if name == "gpt2-large" else apart < 2e-5
