"""Which notebooks run: the one that boots TransformerBridge needs a TransformerLens that has it."""

import importlib.util
from pathlib import Path

# Looked for, not imported: what is imported here is there before the tests have said that there is no hub.
(FOLDER,) = importlib.util.find_spec("transformer_lens").submodule_search_locations
collect_ignore = [] if Path(FOLDER, "model_bridge").is_dir() else ["bring_your_own_model.ipynb"]
