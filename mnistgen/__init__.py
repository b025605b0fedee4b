"Diffusion and flow models on MNIST: `load` a trained model, list the `models`, `compare` them, play in `guidance_lab` and `denoising_lab`."
__version__ = "0.1.0"

from .zoo.generator import Generator
from .zoo.models import load, models

# imported when asked for
_LATER = {'compare': 'comparison', 'guidance_lab': 'zoo.guide', 'denoising_lab': 'zoo.guide'}

def __getattr__(name):
    from importlib import import_module
    if name in _LATER: return getattr(import_module(f'.{_LATER[name]}', __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

def __dir__(): return [*globals(), *_LATER]
