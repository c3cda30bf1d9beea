"""mixc: the offline data-mixture compiler for language-model pretraining."""

__version__ = "0.1.0"
