"""Many facts: read and checked, worked through in a run that resumes, ranked, ablated, collected and written.

May import tracing and what stands before it, but for what is shown.
"""
