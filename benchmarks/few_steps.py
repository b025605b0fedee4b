"""Few steps, measured: `python benchmarks/few_steps.py PART [--model one-step]`.

Parts, each a file of results:

- minutes: what training costs in CPU-minutes; into few-steps-minutes.json
- ways: ways to one evaluation, all from the weights of `rf-fast` (trained here, two to eight minutes
  each): minutes, straightness, and samples by evaluations; into few-steps-ways.json
- curve: a model by evaluations and guidance scale, on 2,000 samples; into NAME-curve.json
- bars: 10,000 samples of a model and of its teacher; into NAME-bars.json and NAME-teacher.json
- decoders: what samples are worth through each decoder; into few-steps-decoders.json
- time: milliseconds a digit, one and a thousand, of all models; into few-steps-time.json

What is there already of these weights is not measured again."""
import shutil, sys, tempfile, time
from dataclasses import replace
from statistics import median
from pathlib import Path

import torch

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'few-steps'
sys.path[:0] = [str(top), str(top/'benchmarks')]
import mnistgen
from autoencoders import about
from flows import row
from guidance import Rows, command, judged, labels_of
from mnistgen.beyond.few_steps import (PAIRS, MeanFlow, MeanMLP, make_pairs, sample_mean,
                                       straightness)
from mnistgen.ddpm import Noise
from mnistgen.lab.data import load_images
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling, Way
from mnistgen.lab.store import WEIGHTS, Results
from mnistgen.ldm import Latents
from mnistgen.zoo.evaluation import get_judge
from mnistgen.zoo.generator import guide
from mnistgen.zoo.models import MODELS
from mnistgen.zoo.train import train_model

NFES = (1, 2, 4, 8, 50)
SCALES = (1., 1.5, 3., 8.)
MEAN = dict(process=MeanFlow, net=MeanMLP, plain=True, epochs=3, batch_size=512, limit=None)  # as many minutes

# what is trained, and how it differs from the recipe of `one-step`
WAYS = {
    'reflow, an eighth at the noise, c = 0.25': dict(times='with-noise', huber=.25),
    'reflow, U-shaped times, c = 0.017': dict(times='u-shaped', huber=.017),
    'distillation, c = 0.25': dict(times='noise', huber=.25),
    'iMF': dict(MEAN, improved=True),
    'MeanFlow': dict(MEAN, improved=False),
    'reflow, an eighth at the noise, c = 0.017': dict(times='with-noise', huber=.017),
    'reflow, U-shaped times, c = 0.25': dict(times='u-shaped', huber=.25),
    'reflow, w = 1 alone': dict(guided=0.),
    'reflow, no real images': dict(inverted=0.),
    'MeanFlow, the usual time': dict(MEAN, improved=False, smooth=False),
}
def trained(what):
    "A way to one step, trained; from a file if it has been trained before. And its seconds."
    asked, model = dict(WAYS[what]), MODELS['one-step']
    name = 'few-' + what.replace(', ', '-').replace(' = ', '-').replace(' ', '-').lower()
    take = lambda *keys: {k: asked.pop(k) for k in keys if k in asked}
    parts, network, size = take('process', 'net'), take('smooth'), take('epochs', 'batch_size')
    how = dict(limit=60_000) | take('plain', 'limit')
    recipe = replace(model.recipes['quick'], stages=(), **dict(epochs=17) | size,
                     process=asked if parts else model.recipes['quick'].process | asked)
    MODELS[name] = replace(model, name=name, recipes=dict(quick=recipe),
                           network=model.network | network, **parts)
    out = KEPT/name
    file = out/f'{name}.safetensors'
    if not file.exists(): train_model(name, out=out, device='cpu', resume=out.exists(), **how)
    return through_vae(mnistgen.load(file, 'cpu')), sum(e['seconds'] for e in Results(None, out).read(name)['history'])

def through_vae(g):
    "The same generator with the decoder of `vae`, by which networks are compared."
    g.space = Latents(mnistgen.load('vae', 'cpu'), g.space.scale)
    return g

@torch.no_grad()
def by_means(g, way):
    "Samples by mean velocities."
    labels, out, s = labels_of(g, way), [], way.sampling
    net = guide(g.net, g.process, w=s.options['w'])
    for i in torch.arange(way.n).split(500):
        noise = Noise(way.seed, len(i), way.first + i[0].item())
        x = noise(torch.empty(len(i), *g.space.shape))
        for _, x, _ in sample_mean(net, g.process, x, s.steps, labels[i]): pass
        out.append(g.space.decode(x))
    return torch.cat(out)

def row_of(g, way):
    "A row of a way, whatever the network answers."
    if not isinstance(g.process, MeanFlow): return row(g, way)
    start = time.time()
    images = by_means(g, way)
    drawn, scores = time.time() - start, judged(images, labels_of(g, way))
    print(f"{way}: FD {scores['train']['FD']:.2f}, {drawn:.0f} s", flush=True)
    return dict(way=way.json(), nfe=way.sampling.steps, seconds=drawn, **scores)

def straight(g, n=200, w=1.):
    "The straightness of the paths of a generator."
    noise, label = Noise(0, n)(torch.empty(n, *g.space.shape)), torch.arange(n) % 10
    net = guide(g.net, g.process, w=w)
    return straightness(net, g.process, noise, label)

# ---- the parts

def ways(_, only=None):
    results, found = Results(None, RESULTS), []
    try: found = results.load('few-steps-ways')['runs']
    except FileNotFoundError: pass
    for what in WAYS if only is None else [only]:
        g, seconds = trained(what)
        if any(r['name'] == what and r['weights'] == g.header['checksum'] for r in found): continue
        found = [r for r in found if r['name'] != what]
        asked = [Sampling('euler', n, w=1.) for n in (1, 4)] + [Sampling('euler', 1, w=1.5)]
        record = dict(name=what, weights=g.header['checksum'], seconds=seconds,
                      steps_of_an_epoch=g.header['items']//g.header['recipe']['batch_size'],
                      epochs=g.header['epochs'], eval_loss=g.header['eval_loss'],
                      recipe=g.header['recipe'], device_of_training=g.header['device']['name'],
                      straightness=straight(g))
        print(what, f'{seconds/60:.1f} minutes', record['straightness'], flush=True)
        found.append(record | dict(rows=[row_of(g, Way(s)) for s in asked]))
        results.save('few-steps-ways', **about(), runs=found)

def curve(name):
    g = through_vae(mnistgen.load(name, 'cpu'))
    rows = Rows(g, f'{name}-curve')
    for nfe in NFES: rows.add('euler', Way(Sampling('euler', nfe, w=1.)), row)
    for first in (2000, 4000): rows.add('euler', Way(Sampling('euler', 1, w=1.), first=first), row)
    for w in SCALES[1:]: rows.add('euler', Way(Sampling('euler', 1, w=w)), row)
    if 'straightness' not in rows.results.read(rows.file):
        rows.results.save(rows.file, add=True, straightness=straight(g))

def bars(name):
    "10,000 samples of a model, and of its teacher with many evaluations."
    g, teacher = [mnistgen.load(k, 'cpu') for k in (name, MODELS[name].teacher)]
    mine, theirs = Rows(through_vae(g), f'{name}-bars'), Rows(teacher, f'{name}-teacher')
    for w, many in ((1., 'euler'), (1.5, 'euler'), (1., 'rk4'), (1.5, 'rk4')):
        if many == 'euler': mine.add('bars', Way(Sampling('euler', 1, w=w), n=10_000), row)
        steps = dict(euler=50, rk4=16)[many]
        theirs.add('bars', Way(Sampling(many, steps, w=w), n=10_000), row)

# ---- decoders and time

def scored(images, labels=None):
    "The judge's numbers, without those of no use here."
    s = judged(images, labels)
    return {k: s[k] for k in ('train', 'confident')} | {k: s[k] for k in ('accuracy',) if k in s}

def decoders(name, n=2000):
    "Test images through each autoencoder, and the samples of a model through those that read them."
    g, test, rows = mnistgen.load(name, 'cpu'), load_images(split='test'), []
    own = mnistgen.load('vae', 'cpu')
    some = get_judge().order('test')[:n]
    latents, way = Latents(own).encode_data(test)[some], Way(g.sampling, n=n)
    pixels = test.pixels[some]
    drawn = g.sample(n, labels_of(g, way), decoded=False, **g.sampling.json())
    for decoder in ('vae', 'vae-tiny', 'vae-light'):
        a = mnistgen.load(decoder, 'cpu')
        images = a.reconstruct(pixels) if decoder == 'vae-light' else a.decode(latents/own.scale)
        error = (2*images[:, 0] - pixels/127.5).square().mean().item()
        r = dict(decoder=decoder, weights=a.header['checksum'], mse=error, real=scored(images))
        if decoder != 'vae-light': r['samples'] = scored(a.decode(drawn/own.scale), labels_of(g, way))
        rows.append(r)
        print(decoder, r['mse'], r['real']['train']['FD'],
              r.get('samples', r['real'])['train']['FD'], flush=True)
    Results(g.header['checksum'], RESULTS).save('few-steps-decoders', **about(), n=n,
                                                way=way.json(), rows=rows)

def parts_of(g, n=250):
    "One evaluation of the network of a model, and decoding, of n digits, as jobs."
    x, t = torch.randn(n, *g.space.shape), torch.full((n,), 500)
    label = torch.arange(n) % 10 if g.labels else None
    net = g.network()
    return dict(evaluation=torch.no_grad()(lambda: net(x, t, label)),
                decoding=lambda: g.space.decode(x))

def seconds_of(job, rounds, clock=time.process_time, pick=median):
    "Seconds of a job: the median of its CPU time, which does not depend on what else is running."
    times = []
    for i in range(rounds + 1):               # the first round warms up
        start = clock()
        job()
        if i: times.append(clock() - start)
    return pick(times)

def timing(_, rounds=5, n=250):
    """Milliseconds a digit, of one evaluation and of decoding, in batches of 250; one digit, and a
    thousand, in the models' own ways: CPU time on one thread. Of `one-step` also by the clock, the
    least of a hundred, and a thousand digits on two threads."""
    names, rows = [k for k in MODELS if (WEIGHTS/f'{k}.safetensors').is_file()], {}
    torch.set_num_threads(1)
    for k in names:
        g = mnistgen.load(k, 'cpu')
        if not hasattr(g, 'process'): continue
        label = dict(labels=7) if g.labels else {}
        one, many = [lambda n=n: g.sample(n, batch_size=500, **label) for n in (1, 1000)]
        few = g.evaluations(1, **label) < 20
        r = rows[k] = {what: 1000*seconds_of(job, rounds)/n for what, job in parts_of(g, n).items()}
        r |= dict(way=str(g.plan(1, **label).sampling), nfe=g.evaluations(1, **label),
                  one=seconds_of(one, 60 if few else 3), thousand=few and seconds_of(many, 3) or None)
        if k == 'one-step':
            clock = dict(clock=time.perf_counter, pick=min)
            r |= {'one, by the clock': seconds_of(one, 100, **clock)}
            torch.set_num_threads(2)
            r |= {'thousand, two threads, by the clock': seconds_of(many, 10, **clock)}
            torch.set_num_threads(1)
        print(k, r, flush=True)
    Results(None, RESULTS).save('few-steps-time', **about(), n=n, rounds=rounds, rows=rows)

def minutes(name, n=2048, limit=4096):
    """What training costs in CPU-minutes, whatever else the machine does: computed of the CPU time
    of some pairs and of some steps."""
    model, folder = MODELS[name], Path(tempfile.mkdtemp())
    teacher, images = mnistgen.load(model.teacher, 'cpu'), load_images()
    recipe, process = model.recipes['quick'], model.process(**model.recipes['quick'].process)
    real = teacher.space.encode_data(images)
    def cost(f):
        start = time.process_time()
        f()
        return time.process_time() - start
    pair = cost(lambda: make_pairs(teacher.net, teacher.process, real, images.labels, n))/n
    (folder/'lessons').mkdir()
    train = lambda epochs: train_model(name, epochs=epochs, limit=limit, device='cpu',
                                       out=folder/f'{epochs}')
    train(1)                                  # makes the pairs
    shutil.rmtree(folder/'1')
    step = (cost(lambda: train(11)) - cost(lambda: train(1)))/(10*(limit//recipe.batch_size))
    pairs = PAIRS['train'] + PAIRS['test']
    steps = recipe.epochs*(PAIRS['train']//recipe.batch_size)
    found = dict(pairs=pair*pairs/60, training=step*steps/60)
    print(found)
    Results(None, RESULTS).save('few-steps-minutes', **about(), pairs=pairs, steps=steps,
                                cpu_minutes=found)

PARTS = dict(minutes=minutes, ways=ways, curve=curve, bars=bars, decoders=decoders, time=timing)

if __name__ == '__main__':
    p = command(__doc__, PARTS, 'one-step')
    p.add_argument('--only', help='one of the ways')
    print_anything()
    a = p.parse_args()
    for part in a.parts: PARTS[part](a.model, *[a.only]*(part == 'ways'))
