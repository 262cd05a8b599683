"""The residual stream in vocabulary space: logits, log-probabilities and before-softmax values of vectors.

The only room that knows how the vocabulary is cut into softmaxes; may import numerics and the model view.
"""
