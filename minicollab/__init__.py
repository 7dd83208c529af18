"""minicollab: CollabLLM (ICML 2025) for one consumer GPU, offline."""

__version__ = "0.1.0"
