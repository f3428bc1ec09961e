"""An objective and a sampler as a reader would write them, outside the package: one file each."""
