"""From a prompt to its trace, of one prompt or of several, and the tables that a trace makes on request.

Holds the rooms before it together, and may import all of them but loading.
"""
