"""Weights that were trained with other code for these networks, as the folders that every command here takes."""
