"""Two models on real data, each a plain diffusers folder: what a user brings to be imported.

`digits` draws one of ten classes, `fashion` draws in the latent space of an autoencoder. Nothing
in their folders knows of Winnow.
"""
