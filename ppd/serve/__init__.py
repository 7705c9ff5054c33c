"""Serve: a bundle answers over HTTP, as OpenAI's interface has it, with a page that shows how answers are made.

Everything about HTTP runs in one event loop; the model runs in one thread beside it (`worker`).
"""
