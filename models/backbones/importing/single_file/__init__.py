"""From a checkpoint in one file, under its trainer's names, to a pipeline.

checkpoint        the file: its tensors' names and shapes, and the tensors themselves
layouts           which model's layout it is; a layout is a row of a table
stable_diffusion  configurations and weights of U-Net, autoencoder and CLIP, in the LDM layout
flow              the same of the transformers of SD 3, FLUX and Z-Image
prediction        what the network predicts, by the marks that trainers leave
opening           all of it, as a `Source` like any folder
"""
