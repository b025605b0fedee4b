"""What guidance does to samples: `python benchmarks/guidance.py PART [--model cfg-fast] [--weights F]`.

Parts, each a file of results, results/NAME-PART.json with NAME as --name has it (else the model's):

- scales: the guidance scale from 0 to 100; some of them on three sets of samples
- ddpm: 1,000 steps of DDPM, step by step, with what cures them and what does not
- extreme: what keeps a scale of 3, 10, 50 or 100 from ruining samples
- best: a few settings on 10,000 samples
- sweep: ten samples for each digit and scale, from the same noise along a row, as pictures
- time: what guidance costs, of networks that nobody has trained (into cfg-time.json)
- auto: `ldm-fast` guided by worse versions of itself (trained here, two minutes)

--weights: a .safetensors file of that model, such as one that predicts something else.
--lean: fewer scales and samples, for networks that take minutes a row.
What is there already of these weights is not measured again."""
import argparse, copy, json, sys, time
from dataclasses import replace
from pathlib import Path

import torch

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'guidance'
sys.path[:0] = [str(top), str(top/'benchmarks')]
import mnistgen
from autoencoders import about
from mnistgen.cfg import Guided
from mnistgen.ddpm import DDPM
from mnistgen.lab.data import load_images, to_uint8
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling, Way
from mnistgen.lab.store import Results
from mnistgen.zoo.evaluation import digits_at_random, diversity, get_judge
from mnistgen.zoo.generator import Generator
from mnistgen.zoo.models import MODELS
from mnistgen.zoo.train import train_model

SCALES = (0., .5, 1., 1.25, 1.5, 2., 3., 5., 7., 10., 50., 100.)
FINE = (1., 1.25, 1.5, 2.)                    # where the best one is, on more sets of samples
LEAN = (0., .5, 1., 1.5, 2., 3., 10., 100.)
REPORT = (0., .5, 1., 2., 3., 5., 7., 10., 50., 100.)

def ddim(steps=50, **options): return Sampling('ddim', steps, **{'eta': 0.} | options)
def thousand(**options): return Sampling('ddpm', 1000, **options)

# ---- a row: samples of a way, judged

def labels_of(g, way):
    "Digits as the training set has them; None for an unconditional model."
    return digits_at_random(way.n, way.seed, way.first) if g.labels else None

def scores_of(seen, labels):
    "The numbers of images that the judge has seen, distances to the training images."
    judge = get_judge()
    within = seen.digits if labels is None else labels               # unconditional: as seen
    return dict(train=judge.compare(seen, 'train'), diversity=diversity(seen, within),
                **{k: v for k, v in judge.alone(seen, labels).items() if k != 'confusion'})

def judged(images, labels):
    "The numbers of a set of images."
    return scores_of(get_judge().assess(images), labels)

def row(g, way, batch_size=1000):
    "Draw samples in a way, and judge them."
    labels, start = labels_of(g, way), time.time()
    images = g.sample(way.n, labels, way.seed, first=way.first, batch_size=batch_size,
                      **way.sampling.json())
    drawn = time.time() - start
    scores = judged(images, labels)
    print(f"{way}: FD {scores['train']['FD']:.2f}, recall {scores['train']['recall']:.3f}, "
          f"accuracy {scores.get('accuracy', 0):.4f}, {drawn:.0f} s", flush=True)
    return dict(way=way.json(), seconds=drawn, **scores)

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
        h = self.g.header
        self.results.save(self.file, **about(), model=h['model'], epochs=h['epochs'],
                          eval_loss=h['eval_loss'], predict=self.g.process.predict,
                          seed=h['recipe']['seed'], rows=self.rows)

# ---- the parts

def scales(g, name, lean):
    rows = Rows(g, f'{name}-scales')
    for w in LEAN if lean else SCALES: rows.add('w', Way(ddim(w=w)), row)
    for first in () if lean or g.process.predict != 'v' else (2000, 4000):
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

def extreme(g, name, lean, n=1000):
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

def best(g, name, lean):
    rows = Rows(g, f'{name}-best')
    tamed = dict(SHARP, bound=1., interval=(100, 800))
    plain, bounded = ((3.,), ()) if lean else ((0., 1., 1.25, 3.), (3., 100.))
    for s in (*(ddim(w=w) for w in plain), *(ddim(w=w, **tamed) for w in bounded)):
        rows.add('best', Way(s, n=10_000), row)

# ---- DDPM-1000, step by step

def changed(g, skip=0, clipped=False):
    "A generator that leaves out the first steps, or clips x̂0 to the range of each dimension."
    g = copy.copy(g)
    process = g.process = copy.copy(g.process)
    if skip:
        path = process.path()[skip:]
        process.path = lambda *_: path
    if clipped:
        z, denoise = g.space.encode_data(load_images()), process.denoise
        low, high = [torch.quantile(z[::5], q, 0) for q in (.001, .999)]
        def within(net, x, t, label=None):
            x0_hat, (a, b) = denoise(net, x, t, label)[0].clamp(low, high), process.levels(t)
            return x0_hat, (x - a*x0_hat)/b
        process.denoise = within
    return g

def ddpm_row(skip=0, clipped=False):
    "What measures a way step by step: the standard deviation of the latents after each step."
    def measure(g, way):
        g, labels, start, stds = changed(g, skip, clipped), labels_of(g, way), time.time(), []
        steps = g.stream(way.n, labels, way.seed, first=way.first, decoded=False,
                         **way.sampling.json())
        for _, x, _ in steps: stds.append(x.std().item())
        drawn, images = time.time() - start, g.space.decode(x)
        scores = judged(images, labels)
        print(f"{way} {skip} {clipped}: std {stds[0]:.2f} … {stds[-1]:.2f}, "
              f"FD {scores['train']['FD']:.2f}, accuracy {scores['accuracy']:.3f}, {drawn:.0f} s",
              flush=True)
        arrays = dict(stds=stds, pictures=to_uint8(images[:12]).numpy())
        return dict(way=way.json(), seconds=drawn, arrays=arrays, **scores)
    return measure

def ddpm_part(g, name, lean):
    rows, limit, n = Rows(g, f'{name}-ddpm'), latent_range(g), 64 if lean else 256
    def add(what, sampling, n=n, **kw): rows.add(what, Way(sampling, n=n), ddpm_row(**kw))
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
    if lean: return
    # on more samples: the cured one beside DDIM
    add('w = 1, clipped', thousand(w=1., clip=limit), n=1000)
    add('w = 3, clipped', thousand(w=3., clip=limit), n=1000)
    for w in (1., 3.):
        rows.add('DDIM', Way(ddim(100, w=w), n=1000), row)
        rows.add('DDIM', Way(ddim(100, w=w, clip=limit), n=1000), row)

# ---- pictures

def sweep(g, name, lean):
    "Ten samples of each digit at each scale, the same noise for all: (10, scales, 10, 28, 28)."
    out = []
    for w in REPORT:
        images = g.sample(100, [d for d in range(10) for _ in range(10)], batch_size=100,
                          **ddim(100, eta=.05, w=w).json())
        out.append(to_uint8(images).view(10, 10, 28, 28))
    Results(g.header['checksum'], RESULTS).save_arrays(f'{name}-sweep', images=torch.stack(out, 1))

# ---- time

# conditional model, its unconditional counterpart, the report's ratio of the two
TIMED = {'concatenation': ('cfg-concat', 'ldm', 1.9),
         'cross-attention': ('cfg-xattn', 'ldm', 2.5),
         'MLP, with the time': ('cfg-fast', 'ldm-fast', None)}

def untrained(name, space, process, sampling):
    "A generator with the weights that the network of a model begins with."
    torch.manual_seed(0)
    net = MODELS[name].net(**MODELS[name].network)
    return Generator(net, process, space, sampling, device='cpu')

def medians(jobs, rounds):
    "Median seconds of each of the jobs, {name: f}, in rounds that take them in turn."
    times = {k: [] for k in jobs}
    for i in range(rounds + 1):               # the first round warms up
        for k, job in jobs.items():
            start = time.perf_counter()
            job()
            if i: times[k].append(time.perf_counter() - start)
    return {k: sorted(t)[rounds//2] for k, t in times.items()}

def timing(g, name, lean, rounds=7, n=10):
    names = dict.fromkeys(k for guided, plain, _ in TIMED.values() for k in (plain, guided))
    usual = DDPM(clip=False), Sampling('ddim', 100, eta=.05)
    def job(name):
        m = untrained(name, g.space, *usual)
        kw = dict(labels=range(n), w=3.) if m.labels else {}
        return lambda: m.sample(n, decoded=False, **kw)
    median = medians({k: job(k) for k in names}, rounds)
    rows = [dict(name=k, plain=median[plain], guided=median[guided], report=report)
            for k, (guided, plain, report) in TIMED.items()]
    for r in rows: print(f"{r['name']}: {r['guided']:.3f} s, {r['guided']/r['plain']:.2f} times")
    Results(None, RESULTS).save('cfg-time', rounds=rounds, n=n, rows=rows, **about())

# ---- autoguidance

def weaker(name, epochs, **network):
    "`ldm-fast` trained for so many epochs, or smaller; from a file if it has been trained before."
    out, model = KEPT/name, MODELS['ldm-fast']
    MODELS[name] = replace(model, name=name, network=model.network | network)
    if not (out/f'{name}.safetensors').exists(): train_model(name, epochs=epochs, out=out)
    return mnistgen.load(out/f'{name}.safetensors', 'cpu')

def auto(g, name, lean, n=2000):
    rows = Rows(g, f'{name}-auto')
    way = Way(Sampling('ddim', 100, eta=1.), n=n)
    rows.add('alone', way, row)
    guides = {'the same, 10 epochs': weaker('ldm-fast-short', 10),
              'width 128, 30 epochs': weaker('ldm-fast-small', 30, width=128)}
    for whose, guide in guides.items():
        for w in (1.25, 1.5, 2.):
            guided = copy.copy(g)
            guided._frozen = Guided(g.network(), g.process, guide=guide.network(), w=w)
            guided._before = None
            rows.add(f'{whose}, w = {w:g}', way, lambda _, way: row(guided, way))

PARTS = dict(scales=scales, ddpm=ddpm_part, extreme=extreme, best=best, sweep=sweep, time=timing,
             auto=auto)

def command(doc, parts, model=None):
    "The command line of a script that measures in parts; scripts add what else they take."
    p = argparse.ArgumentParser(description=doc,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='+', choices=parts)
    p.add_argument('--model', default=model)
    return p

if __name__ == '__main__':
    p = command(__doc__, PARTS, 'cfg-fast')
    p.add_argument('--weights', help='a .safetensors file of that model')
    p.add_argument('--name', help='by which results are stored')
    p.add_argument('--lean', action='store_true')
    print_anything()
    a = p.parse_args()
    for part in a.parts:
        g = mnistgen.load('ldm-fast' if part == 'auto' else a.weights or a.model, 'cpu')
        PARTS[part](g, 'ldm-fast' if part == 'auto' else a.name or a.model, a.lean)
