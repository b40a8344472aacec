"""OME-Zarr volumes and the files beside them: the only package that opens arrays on disk or in object stores.

Import from its modules: `omezarr` describes volumes, `arrays` reads and writes voxels, `output` creates images, `collection`
handles several images at once, and `validation` checks them.
"""
