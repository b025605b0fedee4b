"""What guidance does to samples: `python benchmarks/guidance.py PART [--model cfg-fast] [--weights F]`.

Parts, each a file of results, results/NAME-PART.json with NAME as --name has it (else the model's):

- scales: the guidance scale from 0 to 100; some of them on three sets of samples
- ddpm: 1,000 steps of DDPM, step by step, with what cures them and what does not
- extreme: what keeps a scale of 3, 10, 50 or 100 from ruining samples
- best: a few settings on 10,000 samples
- sweep: ten samples for each digit and scale, from the same noise along a row, as pictures
- time: what guidance costs, of networks that nobody has trained (into cfg-time.json)
- auto: `ldm-fast` guided by worse versions of itself (trained here, two minutes)

--weights: a .safetensors file of that model, such as one that was asked for another target.
What is there already of these weights is not measured again."""
import argparse, copy, json, sys, time
from pathlib import Path

import torch

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'guidance'
sys.path.insert(0, str(top))
import mnistgen
from mnistgen.cfg import ConcatUNet, CrossUNet, Guided, LabelMLP
from mnistgen.ddpm import DDPM, Noise, limit_x0, sample_ddpm
from mnistgen.lab.data import load_images, to_uint8
from mnistgen.lab.device import device_info
from mnistgen.lab.options import Sampling, Way, options_of
from mnistgen.lab.store import Results, versions
from mnistgen.ldm import MLP
from mnistgen.unet import UNet
from mnistgen.zoo.evaluation import digits_at_random, diversity, get_judge
from mnistgen.zoo.generator import Generator

SCALES = (0., .5, 1., 1.25, 1.5, 2., 3., 5., 7., 10., 50., 100.)
FINE = (1., 1.25, 1.5, 2.)                    # where the best one is, on more sets of samples
REPORT = (0., .5, 1., 2., 3., 5., 7., 10., 50., 100.)

def ddim(steps=50, **options): return Sampling('ddim', steps, **{'eta': 0.} | options)
def thousand(**options): return Sampling('ddpm', 1000, **options)

# ---- a row: samples of a way, judged

def judged(images, labels):
    "The numbers of a set of images, distances to the training images."
    judge = get_judge()
    seen = judge.assess(images)
    return dict(train=judge.compare(seen, 'train'), diversity=diversity(seen, labels),
                **{k: v for k, v in judge.alone(seen, labels).items() if k != 'confusion'})

def row(g, way, batch_size=1000, **about):
    "Draw samples in a way, digits as the training set has them, and judge them."
    labels = digits_at_random(way.n, way.seed, way.first) if g.labels else None
    start = time.time()
    images = g.sample(way.n, labels, way.seed, first=way.first, batch_size=batch_size,
                      **way.sampling.json())
    drawn = time.time() - start
    if labels is None: labels = get_judge().assess(images).digits    # unconditional: as seen
    scores = judged(images, labels)
    if not g.labels: del scores['accuracy']
    print(f"{way}: FD {scores['train']['FD']:.2f}, recall {scores['train']['recall']:.3f}, "
          f"accuracy {scores.get('accuracy', 0):.4f}, {drawn:.0f} s", flush=True)
    return about | dict(way=way.json(), seconds=drawn, **scores)

class Rows:
    "Rows of a results file: what is there is not measured again."
    def __init__(self, g, file):
        self.g, self.file = g, file
        self.results = Results(g.header['checksum'], RESULTS)
        self.rows, self.arrays = [], {}
        try: self.rows = self.results.load(file)['rows']
        except (FileNotFoundError, ValueError): return
        try: kept = self.results.load_arrays(file)
        except (FileNotFoundError, ValueError): return
        self.arrays = {k: kept[k] for k in kept.files if k != 'weights'}

    def add(self, name, way, measure):
        "Measure a way, if that has not been done; `name` tells apart what the way does not."
        key = name, json.dumps(way.json())
        if any((r['name'], json.dumps(r['way'])) == key for r in self.rows): return
        found = dict(name=name) | measure(self.g, way)
        arrays = found.pop('arrays', {})      # by the number of the row
        self.arrays |= {f'{k}-{len(self.rows)}': v for k, v in arrays.items()}
        self.rows.append(found)
        if arrays: self.results.save_arrays(self.file, **self.arrays)
        self.save()

    def save(self):
        about = {k: v for k, v in versions().items() if k in ('torch', 'commit')}
        about |= dict(model=self.g.header['model'], predict=self.g.process.predict,
                      epochs=self.g.header['epochs'], seed=self.g.header['recipe']['seed'],
                      device=device_info(self.g.device)['name'])
        self.results.save(self.file, **about, rows=self.rows)

# ---- the parts

def scales(g, name):
    rows = Rows(g, f'{name}-scales')
    for w in SCALES: rows.add('w', Way(ddim(w=w)), row)
    for first in (2000, 4000) if g.process.predict == 'v' else ():
        for w in FINE: rows.add('w', Way(ddim(w=w), first=first), row)

SHARP = dict(parallel=0.)                     # projected guidance

def methods(w, limit):
    "What is tried at a large scale, by name; `limit` is the range of latents."
    return {
        'plain': {},
        'interval 200 to 600': dict(interval=(200, 600)),
        'rescale 0.7': dict(rescale=.7),
        'rescale 1': dict(rescale=1.),
        'clip': dict(clip=limit),
        'threshold': dict(threshold=.995, clip=limit),
        'projected': SHARP,
        'APG': dict(SHARP, momentum=-.5, bound=2.5*(w - 1)),
        'bound 2, projected': dict(SHARP, bound=2.),
        'bound 1, projected': dict(SHARP, bound=1.),
        'bound 1, projected, interval 100 to 800': dict(SHARP, bound=1., interval=(100, 800)),
        'bound 1, interval 100 to 800': dict(bound=1., interval=(100, 800)),
        'CFG-Zero*': dict(zero_star=True),
    }

def extreme(g, name, n=1000):
    rows, limit = Rows(g, f'{name}-extreme'), latent_range(g)
    rows.add('plain', Way(ddim(w=1.), n=n), row)
    for w in (100., 10., 3.):
        for method, options in methods(w, limit).items():
            rows.add(method, Way(ddim(w=w, **options), n=n), row)
    for method in ('plain', 'threshold', 'bound 1, projected, interval 100 to 800'):
        rows.add(method, Way(ddim(w=50., **methods(50., limit)[method]), n=n), row)
    # with CFG++ the scale is a share, 0 to 1
    for w in (.25, .5, 1., 3.):
        rows.add('CFG++', Way(ddim(w=w, renoise='unguided'), n=n), row)

def latent_range(g):
    "What 99.9 % of the latents' values do not exceed, to one decimal."
    z = g.space.encode_data(load_images())
    return round(z.abs().flatten()[::7].quantile(.999).item(), 1)

def best(g, name):
    rows = Rows(g, f'{name}-best')
    tamed = dict(SHARP, bound=1., interval=(100, 800))
    for s in (ddim(w=1.), ddim(w=1.25), ddim(w=3.), ddim(w=100., **tamed), ddim(w=3., **tamed), ddim(w=0.)):
        rows.add('best', Way(s, n=10_000), row)

# ---- DDPM-1000, step by step

class Clipped(torch.nn.Module):
    "A network whose x̂0 is clipped to the range of each dimension."
    def __init__(self, net, process, low, high):
        super().__init__()
        self.net, self.process, self.low, self.high = net, process, low, high

    def forward(self, x, t, label=None):
        x0_hat, _ = self.process.read(self.net(x, t, label), x, t)
        return self.process.answer(x, x0_hat.clamp(self.low, self.high), t)

def walk(g, way, skip=0, clipped=False):
    "Samples of DDPM and the standard deviation of the latents after each step."
    n, s = way.n, way.sampling
    labels = digits_at_random(n, way.seed, way.first)
    part = lambda f: {k: v for k, v in s.options.items() if k in options_of(f)}
    process = copy.copy(g.process.limited(**part(limit_x0)))
    path = process.path(s.steps)[skip:]
    process.path = lambda *_: path
    net = Guided(g.network(), process, **part(Guided))
    if clipped:
        z = g.space.encode_data(load_images())
        low, high = [torch.quantile(z[::5], q, 0) for q in (.001, .999)]
        net = Clipped(net, process, low, high)
    noise = Noise(way.seed, n, way.first)
    x = noise(torch.empty(n, *g.space.shape))
    stds = []
    for _, x, _ in sample_ddpm(net, process, x, None, labels, noise): stds.append(x.std().item())
    return x, labels, stds

def ddpm_row(skip=0, clipped=False):
    def measure(g, way):
        start = time.time()
        x, labels, stds = walk(g, way, skip, clipped)
        drawn = time.time() - start
        images = g.space.decode(x)
        scores = judged(images, labels)
        print(f"{way} {skip} {clipped}: std {stds[0]:.2f} … {stds[-1]:.2f}, "
              f"FD {scores['train']['FD']:.2f}, accuracy {scores['accuracy']:.3f}, {drawn:.0f} s",
              flush=True)
        arrays = dict(stds=stds, pictures=to_uint8(images[:12]).numpy())
        return dict(way=way.json(), seconds=drawn, arrays=arrays, **scores)
    return measure

def ddpm_part(g, name, n=256):
    rows, limit = Rows(g, f'{name}-ddpm'), latent_range(g)
    def add(about, sampling, n=n, **kw): rows.add(about, Way(sampling, n=n), ddpm_row(**kw))
    add('w = 1, no guidance', thousand(w=1.))
    add('w = 3', thousand(w=3.))
    if g.process.predict == 'v': return       # where nothing has to be cured
    add('guidance at t = 999 only', thousand(w=3., interval=(998.5, 999.5)))
    add('the first step left out', thousand(w=3.), skip=1)
    add('x̂0 clipped to the range of each dimension', thousand(w=3.), clipped=True)
    add('x̂0 clipped', thousand(w=3., clip=limit))
    add("dynamic threshold, the latents' range", thousand(w=3., threshold=.995, clip=limit))
    add("dynamic threshold, the pixels' range", thousand(w=3., threshold=.995, clip=1.))
    add('no guidance at t = 999', thousand(w=3., interval=(0, 998)))
    add('no guidance at t > 900', thousand(w=3., interval=(0, 900)))
    add('projected', thousand(w=3., **SHARP))
    add('bound 1, projected', thousand(w=3., bound=1., **SHARP))
    add('rescale 0.7', thousand(w=3., rescale=.7))
    # on more samples: the cured one beside DDIM
    add('w = 1, clipped', thousand(w=1., clip=limit), n=1000)
    add('w = 3, clipped', thousand(w=3., clip=limit), n=1000)
    for w in (1., 3.):
        rows.add('DDIM', Way(ddim(100, w=w), n=1000), row)
        rows.add('DDIM', Way(ddim(100, w=w, clip=limit), n=1000), row)

# ---- pictures

def sweep(g, name):
    "Ten samples of each digit at each scale, the same noise for all: (10, scales, 10, 28, 28)."
    out = []
    for w in REPORT:
        images = g.sample(100, [d for d in range(10) for _ in range(10)], batch_size=100,
                          **ddim(100, eta=.05, w=w).json())
        out.append(to_uint8(images).view(10, 10, 28, 28))
    Results(g.header['checksum'], RESULTS).save_arrays(f'{name}-sweep', images=torch.stack(out, 1))

# ---- time

LATENT = dict(channels=(64, 128), pad_to=8)

def untrained(net, space):
    "A generator with the weights that a network begins with."
    torch.manual_seed(0)
    return Generator(net, DDPM(clip=False), space, Sampling('ddim', 100, eta=.05), device='cpu')

def timing(g, name, rounds=7, n=10):
    two = dict(in_channels=2, out_channels=2, **LATENT)
    plain = {'UNet': UNet(**two), 'MLP': MLP(width=512, blocks=4)}
    nets = {'concatenation': ('UNet', ConcatUNet(**LATENT), 1.9),
            'cross-attention': ('UNet', CrossUNet(**two), 2.5),
            'MLP, with the time': ('MLP', LabelMLP(width=512, blocks=4), None)}
    jobs = {k: (untrained(net, g.space), {}) for k, net in plain.items()}
    jobs |= {k: (untrained(net, g.space), dict(labels=range(n), w=3.))
             for k, (_, net, _) in nets.items()}
    times = {k: [] for k in jobs}
    for i in range(rounds + 1):               # the first round warms up
        for k, (generator, kw) in jobs.items():
            start = time.perf_counter()
            generator.sample(n, decoded=False, **kw)
            if i: times[k].append(time.perf_counter() - start)
    median = {k: sorted(t)[rounds//2] for k, t in times.items()}
    rows = [dict(name=k, plain=median[base], guided=median[k], report=report)
            for k, (base, _, report) in nets.items()]
    for r in rows: print(f"{r['name']}: {r['guided']:.3f} s, {r['guided']/r['plain']:.2f} times")
    about = {k: v for k, v in versions().items() if k in ('torch', 'commit')}
    Results(None, RESULTS).save('cfg-time', rounds=rounds, n=n, rows=rows, **about,
                                device=device_info(g.device)['name'])

# ---- autoguidance

def weaker(name, epochs, **network):
    "`ldm-fast` trained for so many epochs, or smaller; from a file if it has been trained before."
    from dataclasses import replace
    from mnistgen.zoo.models import MODELS, load
    from mnistgen.zoo.train import train_model
    out, model = KEPT/name, MODELS['ldm-fast']
    MODELS[name] = replace(model, name=name, network=model.network | network)
    if not (out/f'{name}.safetensors').exists(): train_model(name, epochs=epochs, out=out)
    return load(out/f'{name}.safetensors', 'cpu')

def auto(g, name, n=2000):
    rows = Rows(g, f'{name}-auto')
    way = Way(Sampling('ddim', 100, eta=1.), n=n)
    rows.add('alone', way, row)
    guides = {'the same, 10 epochs': weaker('ldm-fast-short', 10),
              'width 128, 30 epochs': weaker('ldm-fast-small', 30, width=128)}
    for about, guide in guides.items():
        for w in (1.25, 1.5, 2.):
            guided = copy.copy(g)
            guided._frozen = Guided(g.network(), g.process, guide=guide.network(), w=w)
            guided._before = None
            rows.add(f'{about}, w = {w:g}', way, lambda _, way: row(guided, way))

PARTS = dict(scales=scales, ddpm=ddpm_part, extreme=extreme, best=best, sweep=sweep, time=timing,
             auto=auto)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='+', choices=PARTS)
    p.add_argument('--model', default='cfg-fast')
    p.add_argument('--weights', help='a .safetensors file of that model')
    p.add_argument('--name', help='by which results are stored')
    a = p.parse_args()
    for part in a.parts:
        g = mnistgen.load('ldm-fast' if part == 'auto' else a.weights or a.model, 'cpu')
        PARTS[part](g, 'ldm-fast' if part == 'auto' else a.name or a.model)
