"""Families of text-to-image transformers, each by one adapter: what its pipeline in diffusers does
around the denoiser that the engine does not do for every model.

family      what an adapter says
encoder     prompts, by a family's own pipeline
table       the adapters, by the class of their denoiser
"""
