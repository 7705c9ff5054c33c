"""GGUF files: one file with a model's shape, weights and tokenizer.

Each module turns a part of the file into what a Hugging Face folder would hold; everything after that is shared.
Nothing here is imported before a GGUF file is read, since it needs the package `gguf`.
"""
