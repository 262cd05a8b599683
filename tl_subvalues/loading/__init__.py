"""Models by name: the embedded one, one from the Hugging Face hub or a local folder, Baevski & Auli's.

May import the model view and `baevski18`.
"""
