"""Stage 1: targets, and the flow prior that is trained on them."""
