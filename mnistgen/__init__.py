"Diffusion and flow models on MNIST: `load` a trained model, list the `models`."
__version__ = "0.1.0"

from .zoo.generator import Generator
from .zoo.models import load, models
