"""Solvers and flows, measured: `python benchmarks/flows.py PART [--model ldm-fast] [--weights F]`.

Parts, each a file of results, results/NAME-PART.json with NAME as --name has it (else the model's):

- curve: the distance of 2,000 samples from the training images by network evaluations, for every
  solver; at some of them on three sets of samples (--lean: fewer of both, for networks on pixels)
- choices: times and couplings of training, on the network of `rf-fast`, with equal budgets and two
  seeds (trained here, 8 minutes each); the loss by time, and samples by Euler and midpoint
- losses: the mean squared error of the velocity by the share of noise
- guided: guidance scales, and CFG-Zero*, for a network that takes labels
- blur: samples of flows and of diffusion models by distance, sharpness and confidence
- time: ten samples, beside diffusers' network and scheduler

What is there already of these weights is not measured again."""
import sys, time
from dataclasses import replace
from pathlib import Path

import torch

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'flows'
sys.path[:0] = [str(top), str(top/'benchmarks')]
import mnistgen
from autoencoders import about
from guidance import Rows, command, judged, labels_of, medians, untrained
from mnistgen.lab.data import draw, load_images, make_rng, to_uint8
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling, Way
from mnistgen.lab.store import Results
from mnistgen.ddpm import DDPM
from mnistgen.ldm import edge_widths
from mnistgen.rectified_flow import RectifiedFlow
from mnistgen.zoo.models import MODELS
from mnistgen.zoo.train import train_model

NFES = (1, 2, 4, 8, 10, 16, 20, 50, 100, 200)
LEAN = (4, 8, 10, 20, 50)
AGAIN = (8, 10, 50)                           # on three sets of samples
EACH = {'midpoint': 2, 'heun': 2, 'rk4': 4}   # evaluations of a step, where it is more than one

def sampling(solver, nfe):
    "A solver, 'NAME' or 'NAME, SPACING', with so many evaluations; None if it cannot have them."
    name, _, spacing = solver.partition(', ')
    each, options = EACH.get(name, 1), {'spacing': spacing} if spacing else {}
    if name == 'ddim': options['eta'] = 1.
    return None if nfe % each else Sampling(name, nfe//each, **options)

# ---- a row

def asked(g, way):
    "The arguments of `sample` for a way: how, and which digits; guidance is off if nothing is said."
    options = ({'w': 1.} if g.labels else {}) | way.sampling.json()
    return dict(n=way.n, labels=labels_of(g, way), seed=way.seed, first=way.first, **options)

def row(g, way, batch_size=500):
    "Draw samples in a way, count what they cost, and judge them."
    nfe = g.evaluations(**asked(g, replace(way, n=50)))
    start = time.time()
    images = g.sample(batch_size=batch_size, **asked(g, way))
    drawn, scores = time.time() - start, judged(images, labels_of(g, way))
    width = edge_widths(to_uint8(images)).mean().item()
    print(f"{way}: NFE {nfe:g}, FD {scores['train']['FD']:.2f}, edges {width:.2f}, {drawn:.0f} s",
          flush=True)
    return dict(way=way.json(), nfe=nfe, seconds=drawn, edge_width=width, **scores)

# ---- the parts

SOLVERS = ('euler', 'midpoint', 'heun', 'rk4', 'dpm++', 'unipc', 'dpm++, log-snr', 'unipc, log-snr',
           'ddim')
TOLERANCES = (.3, .1, .03, .01)

def curve(g, name, lean):
    rows = Rows(g, f'{name}-curve')
    for nfe in LEAN if lean else NFES:
        for solver in ('euler', 'midpoint', 'unipc') if lean else SOLVERS:
            way = sampling(solver, nfe)
            if way is None: continue
            rows.add(solver, Way(way), row)
            if lean or nfe not in AGAIN: continue
            for first in (2000, 4000): rows.add(solver, Way(way, first=first), row)
    for tol in () if lean else TOLERANCES:
        rows.add('adaptive', Way(Sampling('adaptive', rtol=tol, atol=tol)), row)

class PlainTime(RectifiedFlow):
    "A rectified flow whose network sees times from 0 to 1, not to 1000."
    def clock(self, t): return t
    def time_of(self, clock): return clock

CHOICES = {'uniform': {}, 'logit-normal': dict(times='logit-normal'),
           'transport': dict(coupling='transport'),
           'logit-normal, transport': dict(times='logit-normal', coupling='transport'),
           'logit-normal, t from 0 to 1': dict(times='logit-normal', of=PlainTime)}

def trained(what, seed, epochs=30, of=RectifiedFlow, **process):
    "`rf-fast` trained so; from a file if it has been trained before."
    name = f"rf-fast-{what.replace(', ', '-')}-{seed}"
    model, out = MODELS['rf-fast'], KEPT/name
    recipe = replace(model.recipes['quick'], epochs=epochs, stages=None, process=process)
    MODELS[name] = replace(model, name=name, recipes=dict(quick=recipe), process=of)
    if not (out/f'{name}.safetensors').exists(): train_model(name, seed=seed, out=out)
    return mnistgen.load(out/f'{name}.safetensors', 'cpu')

@torch.no_grad()
def loss_by_time(g, n=10_000, bins=10, batch_size=500):
    """Mean squared error of the velocity for test images, in each tenth of the share of noise τ.

    The velocity is ε - x0, whatever the network predicts, and times are even in τ: for a
    rectified flow the mean of them all is the loss of Eq. 14."""
    images, rng, p = load_images(split='test'), make_rng('loss by time'), g.process
    x0 = g.space.encode(images.pixels[:n])
    label = images.labels[:n] if g.labels else None
    τ, ε, net = (torch.arange(n) + .5)/n, draw(torch.randn, x0.shape, rng), g.network()
    τ, errors = τ[torch.randperm(n, generator=rng)], []
    for i in torch.arange(n).split(batch_size):
        t = p.time_at(τ[i])
        x0_hat, eps_hat = p.denoise(net, p.add_noise(x0[i], t, ε[i]), t, None if label is None
                                    else label[i])
        errors.append((eps_hat - x0_hat - ε[i] + x0[i]).square().flatten(1).mean(1))
    errors = torch.cat(errors)
    return [errors[(τ*bins).long() == i].mean().item() for i in range(bins)]

def losses(g, name, lean):
    Results(g.header['checksum'], RESULTS).save(
        f'{name}-losses', **about(), model=g.header['model'], epochs=g.header['epochs'],
        n=10_000, seed=0, loss_by_time=loss_by_time(g))

def choices(g, name, lean):
    "All in one file, of no weights that are kept."
    results, found = Results(None, RESULTS), []
    ways = [Sampling('euler', 50, w=1.), Sampling('euler', 8, w=1.), Sampling('midpoint', 4, w=1.)]
    for seed in (0, 1):
        for what, process in CHOICES.items():
            g = trained(what, seed, **process)
            record = dict(name=what, seed=seed, epochs=g.header['epochs'],
                          eval_loss=g.header['eval_loss'], loss_by_time=loss_by_time(g))
            found.append(record | dict(rows=[row(g, Way(s)) for s in ways]))
            results.save('rf-choices', **about(), runs=found)

def blur(g, name, lean):
    """What could make samples of a flow blurry: the number of steps, the last ones, the order, no
    fresh noise. For a diffusion model: the report's 1,000 steps of DDPM, and Euler's."""
    rows = Rows(g, f'{name}-blur')
    ways = [sampling('euler', 50), Sampling('midpoint', 25), Sampling('euler', 50, spacing=2.),
            sampling('ddim', 50)]
    if not isinstance(g.process, RectifiedFlow): ways = [sampling('euler', 50), sampling('ddim', 50)]
    elif not lean: ways += [sampling('euler', 200)]
    for way in ways: rows.add('samples', Way(way), row)
    if isinstance(g.process, RectifiedFlow): return
    rows.add('samples', Way(Sampling('ddpm', 1000), n=500 if lean else 2000), row)

def guided(g, name, lean):
    "Guidance on a flow, and CFG-Zero*: the unconditional answer scaled, and a flow that waits."
    rows = Rows(g, f'{name}-guided')
    for w in (0., 1., 1.5, 3., 10.): rows.add('plain', Way(Sampling('midpoint', 5, w=w)), row)
    for w in (1.5, 3.):
        for how, options in dict(plain={}, scaled=dict(zero_star=True), waits=dict(zero_init=.04),
                                 both=dict(zero_star=True, zero_init=.04)).items():
            rows.add(how, Way(Sampling('euler', 50, w=w, **options)), row)

def diffusers_flow(channels, size, n=10):
    "Ten samples with diffusers' UNet2DModel and FlowMatchEulerDiscreteScheduler, Euler-50."
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
    levels = len(channels)
    net = UNet2DModel(
        sample_size=size, in_channels=1 if size == 32 else 2, out_channels=1 if size == 32 else 2,
        block_out_channels=channels, layers_per_block=1, norm_num_groups=32,
        down_block_types=('DownBlock2D',)*(levels - 1) + ('AttnDownBlock2D',),
        up_block_types=('AttnUpBlock2D',) + ('UpBlock2D',)*(levels - 1)).eval()
    s = FlowMatchEulerDiscreteScheduler()
    @torch.no_grad()
    def sample():
        s.set_timesteps(sigmas=[1 - i/50 for i in range(50)])
        x = torch.randn(n, net.config.in_channels, size, size)
        for t in s.timesteps: x = s.step(net(x, t).sample, t, x).prev_sample
        return x
    return sample

def timing(g, name, lean, rounds=3):
    "Table 13: ten samples, side by side in one run; weights do not matter for that."
    pixels, latents = MODELS['rf'].space(), g.space
    rows = (('ddpm', pixels, DDPM(predict='v'), Sampling('ddpm', 1000)),
            ('ldm', latents, DDPM(predict='v', clip=False), Sampling('ddim', 100, eta=.05)),
            ('rf', pixels, RectifiedFlow(), Sampling('euler', 50)),
            ('rf-latent', latents, RectifiedFlow(), Sampling('euler', 50)),
            ('rf-fast', latents, RectifiedFlow(), Sampling('midpoint', 5, w=1.)))
    jobs = {}
    for model, *how in rows:
        ours = untrained(model, *how)
        labels = range(10) if ours.labels else None
        jobs[model] = lambda m=ours, labels=labels: m.sample(10, labels)
    jobs['rf, diffusers'] = diffusers_flow((32, 64, 96, 96), 32)
    jobs['rf-latent, diffusers'] = diffusers_flow((64, 128), 8)
    median = medians(jobs, rounds)
    for k, t in median.items(): print(f'{k}: {t:.3f} s')
    Results(None, RESULTS).save('rf-time', rounds=rounds, n=10, seconds=median, **about())

PARTS = dict(curve=curve, losses=losses, guided=guided, choices=choices, blur=blur, time=timing)

if __name__ == '__main__':
    p = command(__doc__, PARTS, 'ldm-fast')
    p.add_argument('--weights', help='a .safetensors file of that model')
    p.add_argument('--name', help='by which results are stored')
    p.add_argument('--lean', action='store_true', help='fewer solvers and fewer evaluations')
    print_anything()
    a = p.parse_args()
    g = mnistgen.load(a.weights or a.model, 'cpu')
    for part in a.parts: PARTS[part](g, a.name or a.model, a.lean)
