"""What switched a part on: subkeys, the scores of earlier components, and the query neurons that feed many at once.

May import numerics, the model view and the decomposition.
"""
