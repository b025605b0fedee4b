"Diffusion and flow models on MNIST: `load` a trained model, list the `models`, play in `guidance_lab` and `denoising_lab`."
__version__ = "0.1.0"

from .zoo.generator import Generator
from .zoo.models import load, models

_LABS = ('guidance_lab', 'denoising_lab')     # imported when they are asked for

def __getattr__(name):
    if name not in _LABS: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .zoo import guide
    return getattr(guide, name)

def __dir__(): return sorted({*globals(), *_LABS})
