"""How fast a training step is, beside torchgfn's, and what bounds it: `make bench` runs it all."""
