"""Numbers as pandas tables, and tables as pictures.

May import the rooms whose results it shows: importance, upstream and words.
"""
