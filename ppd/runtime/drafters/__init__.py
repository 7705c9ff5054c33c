"""Drafters: what proposes a step's candidates. Whoever guesses, what is accepted is what plain decoding emits."""

from ppd.runtime.drafters.base import LOOKUP, MEDUSA, MODEL, PLAIN, PPD, TABLE, Drafter, Proposal
from ppd.runtime.drafters.choosing import ChoosingDrafter
from ppd.runtime.drafters.plain import PlainDrafter
from ppd.runtime.drafters.prompt_tokens import PromptTokenDrafter

__all__ = [
    "LOOKUP",
    "MEDUSA",
    "MODEL",
    "PLAIN",
    "PPD",
    "TABLE",
    "ChoosingDrafter",
    "Drafter",
    "PlainDrafter",
    "PromptTokenDrafter",
    "Proposal",
]
