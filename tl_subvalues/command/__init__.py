"""The command `tl-subvalues`: its options, what it prints, and errors in one line.

May import loading, tracing, study, show, words and rows.
"""
