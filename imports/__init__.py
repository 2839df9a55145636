"""Weights that were trained with other code for these networks, as the folders of this project."""
