"""SmolLM2-135M, one prompt: search and sweep against the notebook's way, bare products and a forward pass."""

import torch
from common import best_times, missed, peak_memory_mb, table
from notebook_way import increases

import tl_subvalues as tlsv


def run() -> list[tuple[str, str]]:
    """Sections (title, Markdown)."""
    model = tlsv.load_model()
    tokens = model.to_tokens("The capital of France is")
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    gain = model.ln_final.weight
    target = model.to_single_token(" Paris")

    def fresh() -> tlsv.Trace:
        return tlsv.trace(model, tokens, target)

    trace = fresh()

    def both() -> None:
        trace.__dict__.pop("reading", None)
        trace.ffn_neurons(top=300)
        trace.attn_neurons(top=300)

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    tables = trace.ffn_neurons(top=300), trace.attn_neurons(top=300)
    evaluated = [table.attrs["certificate"]["evaluated"] for table in tables]
    vectors = torch.randn(max(evaluated), model.cfg.d_model)

    def evaluations() -> None:
        with torch.no_grad():
            for n in evaluated:
                vectors[:n] @ model.W_U

    quick = best_times(
        {
            "forward": forward,
            "trace": fresh,
            "both": both,
            "evaluations": evaluations,
            "ffn": lambda: trace.ffn_neurons(top=300),
            "attn": lambda: trace.attn_neurons(top=300),
            "recomputed": lambda: tlsv.trace(model, tokens, target, scale="recomputed").ffn_neurons(top=300),
        },
        repeats=9,
    )
    slow = best_times(
        {
            "notebook_ffn": lambda: increases(model, cache, target, gain, "ffn"),
            "notebook_attn": lambda: increases(model, cache, target, gain, "attn"),
        },
        repeats=1,
    )
    slow |= best_times(
        {"sweep_ffn": lambda: trace.ffn_neurons(top=None), "bare_ffn": lambda: bare_products(model)}, repeats=3
    )
    notebook = slow["notebook_ffn"] + slow["notebook_attn"]
    memory = peak_memory_mb(both)
    memory_sweep = peak_memory_mb(lambda: trace.ffn_neurons(top=None))
    passes = quick["both"] / quick["forward"]
    with_trace = (quick["both"] + quick["trace"]) / quick["forward"]
    rows = [
        ["forward pass", f"{quick['forward'] * 1e3:.0f} ms", "1", ""],
        [
            "trace: forward pass with cache, checks",
            f"{quick['trace'] * 1e3:.0f} ms",
            f"{quick['trace'] / quick['forward']:.1f}",
            "",
        ],
        ["top 300 of 46,080 FFN neurons", f"{quick['ffn'] * 1e3:.0f} ms", f"{quick['ffn'] / quick['forward']:.1f}", ""],
        [
            "top 300 of 86,400 attention neurons",
            f"{quick['attn'] * 1e3:.0f} ms",
            f"{quick['attn'] / quick['forward']:.1f}",
            "",
        ],
        ["both, from a trace", f"{quick['both'] * 1e3:.0f} ms", f"{passes:.1f}", "at most 4"],
        [
            f"of these: {sum(evaluated)} exact evaluations, as bare products with W_U",
            f"{quick['evaluations'] * 1e3:.0f} ms",
            f"{quick['evaluations'] / quick['forward']:.1f}",
            "",
        ],
        ["both, trace included", f"{(quick['both'] + quick['trace']) * 1e3:.0f} ms", f"{with_trace:.1f}", ""],
    ]
    search = table(["task", "time", "forward passes", "goal"], rows)
    both_ms, notebook_s = quick["both"], f"{slow['notebook_ffn']:.1f} s + {slow['notebook_attn']:.1f} s"
    search += (
        f"\n\nThe notebook's way, FFN and attention neurons: {notebook_s}; the search for both top 300 is "
        f"**{notebook / both_ms:.0f} times** faster (goal 150), "
        f"{notebook / (both_ms + quick['trace']):.0f} times with the trace.\n"
        f"Memory beyond model and cache: {memory:.0f} MB for both searches (goal 256), "
        f"{memory_sweep:.0f} MB for the FFN sweep."
        + missed(
            "the price of both searches in forward passes",
            passes,
            4,
            f"the products of the exact evaluations take {quick['evaluations'] / quick['forward']:.1f} by themselves",
        )
    )
    ratio = slow["sweep_ffn"] / slow["bare_ffn"]
    sweep = table(
        ["task", "time", "ratio", "goal"],
        [
            ["W_out @ W_U, all layers, product written out", f"{slow['bare_ffn']:.1f} s", "1", ""],
            ["FFN sweep, `ffn_neurons(top=None)`", f"{slow['sweep_ffn']:.1f} s", f"{ratio:.2f}", "at most 1.1"],
        ],
    )
    return [('Search on SmolLM2-135M, "The capital of France is" → " Paris"', search), ("Sweep on SmolLM2-135M", sweep)]


@torch.no_grad()
def bare_products(model: object) -> None:
    """The matrix products that a sweep cannot do without, layer by layer, and nothing else."""
    for block in model.blocks:
        block.mlp.W_out @ model.W_U


if __name__ == "__main__":
    for title, text in run():
        print(f"## {title}\n\n{text}\n")
