"""From a pipeline in diffusers' folder format to the backbone of a bundle.

source      the folder, or a snapshot from the hub: what stands in it, and what is never taken
kinds       which kind of model it is; everything else is refused by name
scheduler   its noise schedule, spelled out for DDIM
inputs      what it is conditioned on
geometry    the size of its images
card        its licence
weights     the files of its weights: found, copied or merged
loading     that the weights are those of the networks
making      all of it, into a folder beside the bundle
"""
