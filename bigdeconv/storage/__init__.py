"""OME-Zarr volumes and what lies beside them: the only room that opens arrays on disk or in object stores.

Import from its modules: `omezarr` describes, creates and validates volumes, `arrays` moves voxels.
"""
