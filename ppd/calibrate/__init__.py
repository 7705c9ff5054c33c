"""Calibrate: measure the device and the model, then search the best tree."""

from ppd.planning.search import SearchResult, search_fastest_tree, search_tree

__all__ = ["SearchResult", "search_fastest_tree", "search_tree"]
