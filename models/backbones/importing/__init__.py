"""From a pipeline in diffusers' folder format, or in one file, to the backbone of a bundle.

reference   what a path or a hub id leads to
file_format what a file is by its first bytes; not_models: what tensors are by their names
single_file a checkpoint in one file, under its trainer's names
source      the pipeline's folder: what stands in it, and what is never taken
kinds       which kind of model it is; everything else is refused by name
scheduler   its noise schedule, spelled out for DDIM
inputs      what it is conditioned on
geometry    the size of its images
card        its licence
weights     the files of its weights: found, copied or merged
loading     that the weights are those of the networks
making      all of it, into a folder beside the bundle
"""
