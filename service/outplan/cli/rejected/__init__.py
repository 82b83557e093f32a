"""``outplan rejected``: what was refused, in an operator's hands."""
