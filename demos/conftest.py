"""Which notebooks run: the one that boots TransformerBridge needs a TransformerLens that has it."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("transformer_lens.model_bridge") else ["bring_your_own_model.ipynb"]
