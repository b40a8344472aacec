"""Point-spread functions: the type, preparation of measured ones, and simple models.

Arrays are ``z y x``, or ``v z y x`` for several views of one object; lengths are in µm.
"""

from bigdeconv.psf.models import airyscan, gaussian
from bigdeconv.psf.prepare import prepare
from bigdeconv.psf.psf import PSF
from bigdeconv.psf.scaling import scaled

__all__ = ["PSF", "airyscan", "gaussian", "prepare", "scaled"]
