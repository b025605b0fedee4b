"""Train, draw and judge one idea of ideas.py, which calls this script in a process of its own.

What the library does not have is here: spaces, a network, times, a coupling, trainers."""
import json, sys, tempfile, time

import torch
import torch.nn.functional as F
from torch import nn

from mnistgen.ddpm import DDPM, TIMES
from mnistgen.lab.data import (Batches, Folded, Pixels, denormalize, draw, load_images, normalize,
                               to_uint8)
from mnistgen.lab.options import Sampling
from mnistgen.lab.plotting import save_grid
from mnistgen.lab.training import Recipe, Task, Trainer
from mnistgen.unet import TimeEmbedding, UNet
from mnistgen.zoo.evaluation import evaluate
from mnistgen.zoo.generator import Generator

# ---- spaces

class Cropped(Pixels):
    "The middle 24×24 pixels."
    shape = (1, 24, 24)

    @staticmethod
    def encode(x): return normalize(x)[..., 2:26, 2:26]

    @staticmethod
    def decode(x): return denormalize(F.pad(x, (2,)*4, value=-1.))

class Whole(Pixels):
    "All pixels, in blocks of 2×2."
    shape = (4, 14, 14)

    @staticmethod
    def encode(x): return F.pixel_unshuffle(normalize(x), 2)

    @staticmethod
    def decode(x): return denormalize(F.pixel_shuffle(x, 2))

SPACES = {'Pixels': Pixels, 'Folded': Folded, 'Cropped': Cropped, 'Whole': Whole}

# ---- networks

class Block(nn.Module):
    "Attention and an MLP, both scaled, shifted and gated by the time (adaLN-Zero)."
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.time = nn.Linear(256, 6*width)
        self.qkv = nn.Linear(width, 3*width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4*width)
        self.down = nn.Linear(4*width, width)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def attention(self, h):
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))

    def forward(self, h, emb):
        scale1, shift1, gate1, scale2, shift2, gate2 = self.time(emb)[:, None].chunk(6, -1)
        h = h + gate1*self.attention(norm(h)*(1 + scale1) + shift1)
        return h + gate2*self.down(F.gelu(self.up(norm(h)*(1 + scale2) + shift2)))

def norm(h): return F.layer_norm(h, h.shape[-1:])

class Patches(nn.Module):
    "A transformer on patches of positions (Peebles & Xie, 2023)."
    def __init__(self, width, blocks, heads, shape=(4, 12, 12), patch=2):
        super().__init__()
        self.patch = patch
        n, c = shape[1]*shape[2]//patch**2, patch**2*shape[0]
        self.enter = nn.Linear(c, width)
        self.leave = nn.Linear(width, c)
        self.time = TimeEmbedding(64)
        self.where = nn.Parameter(.02*torch.randn(n, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x, t, label=None):
        side, emb = x.shape[-1]//self.patch, self.time(t)
        h = self.enter(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.where
        for block in self.blocks: h = block(h, emb)
        h = self.leave(norm(h)).mT.unflatten(2, (side, side))
        return F.pixel_shuffle(h, self.patch)

NETWORKS = {'UNet': UNet, 'Patches': Patches}

# ---- choices of the process

def spread_evenly(n, rng, device):
    "A number in (0, 1) from each n-th of it (Kingma et al., 2021)."
    return (torch.arange(n, device=device) + draw(torch.rand, (n,), rng, device))/n

def even_logit_normal_times(n, rng, device):
    return torch.special.ndtri(spread_evenly(n, rng, device).clamp(1e-6, 1 - 1e-6)).sigmoid()

EVEN = {'uniform': 'uniform, spread evenly', 'logit-normal': 'logit-normal, spread evenly'}
TIMES[EVEN['uniform']] = spread_evenly
TIMES[EVEN['logit-normal']] = even_logit_normal_times

def process_of(setting):
    "The process of a setting. Two ideas that the log calls trainers are choices of the process."
    config, word = dict(setting['process']), setting.get('trainer')
    if word == 'Transport': config['coupling'] = 'transport'
    if word == 'Stratified': config['times'] = EVEN[config.get('times', 'uniform')]
    return DDPM(**config)

# ---- trainers

class Growing(Trainer):
    "The average's decay grows with the step (Karras et al., 2024, Eq. 4; relative width 0.1)."
    def train_step(self, batch):
        self.recipe.ema = (1 - 1/(self.step + 1))**7.94
        return super().train_step(batch)

class CoarseFirst(Trainer):
    "For the first third of the time, images of half the side."
    def train_step(self, batch):
        x0, label = batch
        coarse = self.seconds() < 20*self.recipe.minutes
        self.net.pad_to = 16 if coarse else 32
        return super().train_step((F.avg_pool2d(x0, 2), label) if coarse else batch)

TRAINERS = {'Growing': Growing, 'CoarseFirst': CoarseFirst}

def trainer_of(setting, recipe, space, out, since):
    "The trainer of a setting, with its network and its data."
    torch.manual_seed(recipe.seed)
    net = NETWORKS[setting.get('net', 'UNet')](**setting['network'])
    train, test = load_images(split='train').pixels, load_images(split='test').pixels[:2000]
    batches = lambda x, size: Batches(x, None, size, recipe.seed, space.encode)
    task = Task('idea', net, process_of(setting), batches(train, recipe.batch_size),
                batches(test, 250))
    word = setting.get('trainer')
    return TRAINERS.get(word, Trainer)(task, recipe, out, 'cpu', word == 'Plain',
                                       time.time() - since)

# ---- one idea

def judge(images):
    "What the log keeps of the scores."
    s = evaluate(to_uint8(images))
    scores = {k: s['train'][k] for k in ('FD', 'FD∞', 'precision', 'recall')}
    return dict(confident=s['confident'], border=s['border'], **scores,
                floor=s['floor']['train']['FD'])

def work(setting, minutes, seed, n, since, grid):
    "Train, draw, judge."
    space = SPACES[setting['space']]()
    recipe = Recipe(epochs=10_000, minutes=minutes, seed=seed, **setting['recipe'])
    with tempfile.TemporaryDirectory() as tmp:
        trainer = trainer_of(setting, recipe, space, tmp, since)
        record = trainer.fit()
    seconds = sum(e['seconds'] for e in record['history'])
    sampling = Sampling('ddim', 50, eta=setting.get('eta', 1.),
                        spacing=setting.get('spacing', 'leading'))
    g, start = Generator(trainer.average, trainer.process, space, sampling), time.time()
    images = g.sample(n, seed=0)
    drawn = time.time() - start
    if grid: save_grid(images[:64], grid)
    return dict(steps=trainer.step, images_per_second=trainer.step*recipe.batch_size/seconds,
                eval_loss=record['history'][-1]['eval_loss'], parameters=record['parameters'],
                drawn=drawn, **judge(images))

if __name__ == '__main__': print(json.dumps(work(*json.loads(sys.argv[1]))))
