"""Attributes that are asked for, measured: `python benchmarks/attributes.py PART [--model M]`.

Parts, each a file of results, results/MODEL-PART.json:

- asked: 10,000 digits with attributes at random from 0.05 to 0.95, all three said; what is measured
  of the samples beside what was asked for, their digits, and their distance; at two scales
- settings: 1,000 digits at each setting of one attribute, the others not said; at two scales
- decoded: what the latents keep of attributes, of test digits (into attributes-decoded.json)
- negative: 4s that are not to be 9s, and the like (of `cfg-fast`)
- two: samples of two classes at once (of `cfg-fast`)

With no attribute said `python tools/measure.py attributes-fast` measures a model. What is there
already of these weights is not measured again."""
import sys
from pathlib import Path

import torch
from scipy.stats import spearmanr

top = Path(__file__).resolve().parent.parent
RESULTS = top/'results'
sys.path[:0] = [str(top), str(top/'benchmarks')]
import mnistgen
from autoencoders import about
from guidance import Rows, command, judged, scores_of
from mnistgen.beyond.attributes import MEASURES, RANKS, Composed, ranks
from mnistgen.lab.data import load_images, make_rng
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling, Way
from mnistgen.lab.store import Results
from mnistgen.zoo.evaluation import digits_at_random, get_judge
from mnistgen.zoo.generator import Generator

SETTINGS = (.05, .2, .35, .5, .65, .8, .95)
SCALES = (1., 1.5)
PAIRS = ((4, 9), (9, 4), (7, 9), (3, 5), (5, 3), (8, 3))

def at(g, **options):
    "The model's own way of sampling, with other options."
    return Sampling(g.sampling.sampler, g.sampling.steps, **g.sampling.options | options)

def asked(g, name):
    "Every attribute by chance: does the sample follow?"
    def measure(g, way):
        digits, rng = digits_at_random(way.n, way.seed), make_rng('attributes')
        said = .05 + .9*torch.rand(way.n, len(MEASURES), generator=rng)
        label = torch.cat([digits[:, None], (said*(RANKS - 1)).round().long()], 1)
        images = g.sample(way.n, label, way.seed, batch_size=1000, **way.sampling.json())
        seen = get_judge().assess(images)
        scores = scores_of(seen, digits)
        found, rows = ranks(images, digits), {}
        for i, kind in enumerate(MEASURES):
            test = spearmanr(said[:, i], found[:, i])
            tenth = ((said[:, i] - .05)/.9*10).long().clamp(max=9)
            rows[kind] = dict(
                spearman=test.statistic, n=way.n,
                by_digit=[spearmanr(said[digits == d, i], found[digits == d, i]).statistic
                          for d in range(10)],
                asked=[said[tenth == k, i].mean().item() for k in range(10)],
                quantiles=[found[tenth == k, i].quantile(torch.tensor([.1, .5, .9])).tolist()
                           for k in range(10)],
                accuracy=[(seen.digits == digits)[tenth == k].float().mean().item()
                          for k in range(10)],
                error=(found[:, i] - said[:, i]).abs().mean().item())
        for k, r in rows.items(): print(f"{k}: Spearman {r['spearman']:.3f}", flush=True)
        return dict(way=way.json(), attributes=rows, **scores)
    rows = Rows(g, f'{name}-asked')
    for w in SCALES: rows.add('asked', Way(at(g, w=w), n=10_000), measure)

def decoded(g, name):
    "What the latents keep of attributes: ranks of test digits beside those of their decodings."
    test = load_images(split='test')
    images = g.space.decode(g.space.encode(test.pixels))
    own, kept, n = ranks(test.pixels, test.labels), ranks(images, test.labels), len(test.labels)
    rows = {kind: dict(spearman=spearmanr(own[:, i], kept[:, i]).statistic, n=n)
            for i, kind in enumerate(MEASURES)}
    autoencoder = g.space.autoencoder.header['checksum']
    Results(autoencoder, RESULTS).save('attributes-decoded', **about(), attributes=rows)

def settings(g, name):
    "One attribute at a time, at fixed settings."
    rows = Rows(g, f'{name}-settings')
    def measure(g, way):
        digits = torch.arange(way.n) % 10
        images = g.sample(way.n, digits, way.seed, batch_size=1000, **way.sampling.json())
        scores = judged(images, digits)
        found = ranks(images, digits).mean(0).tolist()
        print(f"{way}: accuracy {scores['accuracy']:.4f}", flush=True)
        return dict(way=way.json(), found=dict(zip(MEASURES, found)), **scores)
    for w in SCALES:
        for kind in MEASURES:
            for s in SETTINGS: rows.add(kind, Way(at(g, w=w, **{kind: s}), n=1000), measure)

def counted(g, way, digits, of=None):
    "How many of the samples are seen as which digit, and how sure the judge is."
    images = (of or g).sample(way.n, digits, way.seed, batch_size=1000, **way.sampling.json())
    seen = get_judge().assess(images)
    counts = seen.digits.bincount(minlength=10).tolist()
    return dict(way=way.json(), counts=counts, **scores_of(seen, digits))

def negative(g, name):
    """A digit, guided away from the class it is taken for, beside plain guidance.

    FD is to all digits, so it compares these rows with each other alone."""
    rows = Rows(g, f'{name}-negative')
    for digit, other in PAIRS:
        def measure(g, way):
            row = counted(g, way, torch.full((way.n,), digit))
            print(digit, other, way.sampling, row['accuracy'], row['counts'][other], flush=True)
            return row | dict(digit=digit, other=other)
        for w in (1., 1.5, 2., 3.):
            for options in ({}, dict(negative=other)) if w > 1 else ({},):
                way = Way(Sampling('ddim', 50, eta=0., w=w, **options), n=1000)
                rows.add(f'{digit} not {other}', way, measure)

def two(g, name):
    "Two classes at once, the sum of their pushes."
    rows = Rows(g, f'{name}-two')
    for pair in ((1, 7), (3, 8), (4, 9), (2, 0), (5, 6)):
        for w in (1., 1.5, 2.):
            def measure(g, way):
                both = Generator(Composed(g.network(), pair, w), g.process, g.space, g.sampling,
                                 plain=True)
                row = counted(g, way, None, both)
                print(pair, w, row['counts'], row['confident'], flush=True)
                return row | dict(pair=pair, w=w)
            rows.add(f'{pair[0]} and {pair[1]}, w = {w:g}', Way(Sampling('ddim', 50, eta=0.), n=1000),
                     measure)

PARTS = dict(asked=asked, settings=settings, decoded=decoded, negative=negative, two=two)
USUAL = dict(negative='cfg-fast', two='cfg-fast')

if __name__ == '__main__':
    p = command(__doc__, PARTS)               # of negative and two cfg-fast, else attributes-fast
    p.add_argument('--weights', help='a .safetensors file of that model')
    print_anything()
    a = p.parse_args()
    for part in a.parts:
        name = a.model or USUAL.get(part, 'attributes-fast')
        PARTS[part](mnistgen.load(a.weights or name, 'cpu'), name)
