"""What is around every test, set when this is imported: no network, little noise, one thread."""

import importlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# Of the programs that tests start, notebooks too: where pytest has a process a core, more threads wait for each other
# (does_it_matter.ipynb: 18 s with one, 101 s with two).
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers

torch.set_num_threads(1)  # the models are tiny
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

# jaxtyping's hook compiles anew whatever a module of the package is the first to import: 5 s of every process.
for name in ("accelerate", "click", "pandas", "pyarrow.parquet", "rich.console", "transformers.generation.utils"):
    importlib.import_module(name)
