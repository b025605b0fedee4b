"""Latent diffusion, varied: `python benchmarks/latents.py --failures | --starts | --variants | --edges [NAME ...] [--seed 0]`.

- --failures: the same training of `ldm-fast`'s network with one thing wrong at a time; into
  results/ldm-failures.json (4 minutes a row; autoencoders that have hardly been trained come first, a
  few minutes more).
- --starts: `ldm-fast`'s network with nothing wrong, asked for v or for ε, sampled from other first
  times; into results/ldm-starts.json (a minute a row).
- --variants: networks with and without the padding of the report's, for the same minutes of wall
  clock; into results/ldm-variants.json (4 minutes a row).
- --edges: how sharp the samples of the bundled pixel and latent models are; into
  results/ldm-edges.json (samples that tools/measure.py has kept are not drawn again).

Each training runs in a process of its own and leaves a small grid beside the numbers. Rows that are
there are not measured again (--again does). Latents are encoded once and kept in runs/latents/, as
those autoencoders are."""
import argparse, json, math, os, re, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'latents'
sys.path[:0] = [str(top), str(top/'tools'), str(top/'benchmarks')]
from autoencoders import about, put
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling

# What is wrong, in the settings of FAILURES. factor: of the scale. drawn: latents are drawn instead of
# their mode. clip: to [-1, 1] when sampling. autoencoder: another than the bundled `vae`, one of its
# recipe that has seen so many images, once. like: which other's training it shares.
RIGHT = dict(factor=1., drawn=False, clip=False, autoencoder='vae', like=None)
FAILURES = {name: RIGHT | wrong for name, wrong in {
    'nothing': {},
    'latents × 0.25': dict(factor=.25),
    'latents × 4': dict(factor=4.),
    'drawn, not the mode': dict(drawn=True),
    'clipped to [-1, 1]': dict(clip=True, like='nothing'),
    'autoencoder, one epoch': dict(autoencoder=60_000),
    'autoencoder, half an epoch': dict(autoencoder=30_000),
}.items()}

# whose quick or report's recipe a failure is trained by; both have AdamW and batches of 512, the first
# asks for v, the second for ε
RECIPES = {'quick': 'ldm-fast', 'report': 'ldm'}

VARIANTS = {}

def add_variant(name, net, why, recipe=None, **network):
    VARIANTS[name] = dict(net=net, network=network, recipe=recipe or {}, why=why)

SMALL = dict(in_channels=2, out_channels=2, pad_to=None)
ADAMW = dict(optimizer='adamw')
add_variant('padded UNet', 'UNet', "the report's: 4×4 padded to 8×8, and 4×4 below",
            **SMALL | dict(channels=(64, 128), pad_to=8))
add_variant('padded UNet, AdamW', 'UNet', "the same with the report's optimiser", ADAMW,
            **SMALL | dict(channels=(64, 128), pad_to=8))
add_variant('two levels, no padding', 'UNet', 'the same on 4×4 and 2×2, the regime the report avoids: '
            'equal parameters, a quarter of the arithmetic', **SMALL, channels=(64, 128))
add_variant('one level', 'UNet', 'what the report proposes: equal parameters, half of the arithmetic',
            **SMALL, channels=(128,))
add_variant('transformer', 'Patches', '16 tokens of two numbers: equal parameters',
            width=160, blocks=5, heads=5, shape=(2, 4, 4), patch=1)
add_variant('MLP, Muon', 'MLP', '32 numbers without a grid, with the same optimiser as the UNets: '
            'equal parameters', width=512, blocks=4)
add_variant('MLP', 'MLP', 'where a step is this cheap, it should cost little beside the network, and '
            'take many images at once', ADAMW | dict(batch_size=512, lr=2e-3), width=512, blocks=4)

# where sampling begins
STARTS = {
    'DDPM-1000': Sampling('ddpm', 1000),
    'DDIM-500': Sampling('ddim', 500, eta=1.),
    'DDIM-250': Sampling('ddim', 250, eta=1.),
    'DDIM-100': Sampling('ddim', 100, eta=1.),
    'DDIM-100, trailing': Sampling('ddim', 100, eta=1., spacing='trailing'),
}

# how the samples whose edges are measured are drawn, in pixels and in latents
EDGES = {
    'DDPM-1000': dict(ddpm=Sampling('ddpm', 1000), ldm=Sampling('ddpm', 1000)),
    "DDIM-100, as the report's": dict(ddpm=Sampling('ddim', 100, eta=0.),
                                      ldm=Sampling('ddim', 100, eta=.05)),
    'DDIM-100, η = 1': dict(ddpm=Sampling('ddim', 100, eta=1.), ldm=Sampling('ddim', 100, eta=1.)),
}

def slug(name): return re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')

def posterior(weights):
    "An autoencoder, and mean and log-variance of the latents of the training and of the test images."
    from mnistgen.lab.data import load_images
    from mnistgen.lab.store import load_checkpoint, save_checkpoint
    from mnistgen.zoo.models import load
    a, parts = load(weights, 'cpu'), ('mean', 'logvar')
    path = KEPT/f"{a.header['checksum']}.safetensors"                # encoded once for each autoencoder
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = {split: a.posterior(load_images(split=split).pixels) for split in ('train', 'test')}
        tensors = {f'{split}.{k}': v for split, p in encoded.items() for k, v in zip(parts, p)}
        save_checkpoint(path, tensors, dict(autoencoder=a.header['checksum']))
    tensors, _ = load_checkpoint(path)
    return a, *[tuple(tensors[f'{split}.{k}'] for k in parts) for split in ('train', 'test')]

def trained_briefly(images):
    "The weights of an autoencoder of the bundled one's kind that has seen so many images, once."
    from mnistgen.zoo.train import train_model
    out = KEPT/f'vae-{images}'
    if not (out/'vae.safetensors').exists():
        train_model('vae', epochs=1, limit=images, out=out, device='cpu',
                    resume=(out/'state.safetensors').exists())
    return out/'vae.safetensors'

def network(net, kw):
    from idea_worker import NETWORKS
    from mnistgen.ldm import MLP
    out = (NETWORKS | dict(MLP=MLP))[net](**kw)
    if net == 'Patches': out.leave = out._modules.pop('leave')        # last, as in the others, so that Muon leaves it to AdamW
    return out

def drawn_batches(mean, logvar, batch_size, seed):
    "Batches of draws from the posterior, new ones in each epoch."
    import torch
    from mnistgen.lab.data import Batches, make_rng
    rng, c = make_rng('drawn', seed), mean.shape[1]
    def draw(both):
        mean, std = both[:, :c], both[:, c:]
        return mean + std*torch.randn(std.shape, generator=rng)
    both = torch.cat([mean, (logvar/2).exp()], 1)
    return Batches(both, batch_size=batch_size, seed=seed, transform=draw)

def trained(net, process, space, recipe, train, test, drawn=False):
    "The trainer after its training."
    from mnistgen.lab.data import Batches
    from mnistgen.lab.training import Task, Trainer
    settings, s = dict(batch_size=recipe.batch_size, seed=recipe.seed), space.scale
    if drawn: batches = drawn_batches(s*train[0], train[1] + 2*math.log(s), **settings)
    else: batches = Batches(s*train[0], **settings)
    task = Task('latents', net, process, batches, Batches(s*test[0], batch_size=250, seed=recipe.seed))
    with tempfile.TemporaryDirectory() as tmp:
        trainer = Trainer(task, recipe, tmp, 'cpu')
        trainer.fit()
    return trainer

def drawn_samples(g, n, sampling=None):
    "Latents of n samples, in the generator's own way or another."
    way = (sampling or g.sampling).json()
    return g.sample(n, decoded=False, batch_size=250, **way)

def judged(images, grid):
    from mnistgen.lab.data import to_uint8
    from mnistgen.lab.plotting import save_grid
    from mnistgen.zoo.evaluation import evaluate
    save_grid(images[:16], RESULTS/grid)
    s, keep = evaluate(to_uint8(images)), ('FD', 'FD∞', 'precision', 'recall')
    def numbers(s): return {k: s['train'][k] for k in keep} | {k: s[k] for k in ('confident', 'border')}
    return dict(grid=grid, **numbers(s), floor=numbers(s['floor']))

# ---- in a worker

def learned(name, kind, epochs, seed):
    "A generator whose training had one thing wrong, its test latents, and its losses; trained once."
    import torch
    from dataclasses import replace
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.store import load_checkpoint, save_checkpoint
    from mnistgen.ldm import Latents
    from mnistgen.zoo.generator import Generator
    from mnistgen.zoo.models import MODELS
    s, model = FAILURES[name], MODELS['ldm-fast']
    weights = s['autoencoder'] if s['autoencoder'] in MODELS else trained_briefly(s['autoencoder'])
    a, train, test = posterior(weights)
    space = Latents(a, s['factor']/train[0].double().std().item())
    recipe = replace(MODELS[RECIPES[kind]].recipes[kind], epochs=epochs, stages=(), seed=seed)
    process = DDPM(**recipe.process | dict(clip=s['clip']))
    torch.manual_seed(seed)
    net = network('MLP', model.network)
    kept = slug(s['like'] or name)            # clipping comes after training: it is not trained again
    kept = KEPT/f"{kept}-{kind}-{epochs}-{seed}-{a.header['checksum'][:8]}.safetensors"
    if not kept.exists():
        t = trained(net, process, space, recipe, train, test, s['drawn'])
        history = t.record['history']
        losses = {k: history[-1][k] for k in ('train_loss', 'eval_loss')}
        seconds = sum(e['seconds'] for e in history)
        save_checkpoint(kept, t.average.state_dict(), dict(losses, seconds=seconds))
    tensors, header = load_checkpoint(kept)
    net.load_state_dict(tensors)
    losses = {k: header[k] for k in ('train_loss', 'eval_loss', 'seconds')}
    return Generator(net, process, space, model.sampling), space.scale*test[0], losses

def failure(name, kind, epochs, n, seed):
    "Train with one thing wrong, draw in a hundred steps and in a thousand, judge."
    from mnistgen.zoo.evaluation import get_judge
    g, test, losses = learned(name, kind, epochs, seed)
    def drawn_by(way, sampling):
        z = drawn_samples(g, n, sampling)
        grid = f'ldm-failure-{slug(name)}-{kind}-{slug(way)}.png'
        return dict(way=sampling.json(), std=z.std().item(), **judged(g.space.decode(z), grid))
    judge = get_judge()
    real = g.space.autoencoder.reconstruct(judge.test.pixels[judge.order('test')[:n]])
    decoded = judged(real, f'ldm-failure-{slug(name)}-decoded.png')
    ways = {'DDIM-100': g.sampling, 'DDPM-1000': Sampling('ddpm', 1000)}
    return dict(scale=g.space.scale, **losses, std=test.std().item(), decoded=decoded,
                drawn={way: drawn_by(way, sampling) for way, sampling in ways.items()})

def growth(process, t, s):
    "What a step with η = 1 from t to s makes of an error of ε̂, as a factor."
    (a_t, b_t), (a_s, b_s) = process.levels(t), process.levels(s)
    variance = process.posterior(t, s)[2]
    return a_s*b_t/a_t - math.sqrt(max(0., b_s**2 - variance))

def start(name, kind, epochs, n, seed, chunk=250):
    "A network with which nothing is wrong, sampled from another first time."
    import torch
    g, test, losses = learned('nothing', kind, epochs, seed)
    way = STARTS[name]
    times = g.process.path(way.steps, way.options.get('spacing', 'leading'))
    variances, out = [], []
    for first in range(0, n, chunk):
        along = []                                                   # how latents are spread along the way
        for _, z, _ in g.stream(min(chunk, n - first), first=first, decoded=False, **way.json()):
            along.append(z.var())
        variances.append(torch.stack(along))
        out.append(z)
    z, spread = torch.cat(out), torch.stack(variances).mean(0).sqrt()
    size = z.square().mean((1, 2, 3)).sqrt()
    path = dict(t=[s for _, s in times], std=spread.tolist())
    return dict(way=way.json(), first=times[0], growth=growth(g.process, *times[0]), **losses,
                path=path, std=z.std().item(), lost=(size > 2).float().mean().item(),
                **judged(g.space.decode(z), f'ldm-start-{kind}-{slug(name)}.png'))

def variant(name, minutes, n, seed):
    "Train a network for so many minutes, draw, judge, and see how long it takes for few images."
    import torch
    from dataclasses import replace
    from torch.utils.flop_counter import FlopCounterMode
    from mnistgen.ddpm import DDPM
    from mnistgen.ldm import Latents
    from mnistgen.zoo.generator import Generator
    from mnistgen.zoo.models import MODELS
    s, model = VARIANTS[name], MODELS['ldm']
    a, train, test = posterior(model.autoencoder)
    space, changes = Latents(a), dict(epochs=10_000, minutes=minutes, stages=None, seed=seed)
    recipe = replace(model.recipes['quick'], **changes | s['recipe'])
    process, counter = DDPM(**recipe.process), FlopCounterMode(display=False)
    torch.manual_seed(seed)
    net = network(s['net'], s['network'])
    with counter, torch.no_grad(): net(torch.zeros(1, *space.shape), torch.zeros(1))
    t = trained(net, process, space, recipe, train, test)
    g = Generator(t.average, process, space, model.sampling)
    start = time.time()
    z = drawn_samples(g, n)
    drawing = time.time() - start
    def best(k):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            g.sample(k)
            times.append(time.perf_counter() - start)
        return min(times[1:])
    spent = sum(e['seconds'] for e in t.record['history'])
    grid = f'ldm-variant-{slug(name)}{f"-{seed}"*bool(seed)}.png'
    return dict(parameters=t.record['parameters'], mflop=counter.get_total_flops()/1e6,
                optimizer=recipe.optimizer, batch_size=recipe.batch_size, steps=t.step,
                images_per_second=t.step*recipe.batch_size/spent,
                eval_loss=t.record['history'][-1]['eval_loss'], drawing=drawing,
                seconds={str(k): best(k) for k in (1, 10)}, sampling=model.sampling.json(),
                **judged(space.decode(z), grid))

# ---- in the parent

def rows_of(path): return json.loads(path.read_text(encoding='utf-8')) if path.exists() else []

def summary(name, r):
    "A row in a line."
    def scores(q):
        return (f"FD {q['FD']:.2f} (real {q['floor']['FD']:.2f}), P {q['precision']:.3f} "
                f"R {q['recall']:.3f}, confident {q['confident']:.1%}")
    drawn = [f'{way} {scores(q)}' for way, q in r['drawn'].items()] if 'drawn' in r else [scores(r)]
    steps = f", {r['steps']} steps" if 'steps' in r else ''
    return f"{name}: eval loss {r['eval_loss']:.4f}, {'; '.join(drawn)}{steps}"

def measure(path, order, name, key, setting, call, again):
    "A row, in a process of its own, unless it is there."
    same = lambda r: {k: r[k] for k in key} == key
    if not again and any(map(same, rows_of(path))): return
    p = subprocess.run([sys.executable, __file__, '--worker', json.dumps(call)], text=True,
                       env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE)
    if p.returncode: sys.exit(f'{name}: failed')
    r = key | dict(setting=setting) | about() | json.loads(p.stdout.splitlines()[-1])
    rows = [q for q in rows_of(path) if not same(q)] + [r]
    rows.sort(key=lambda r: (r.get('recipe', ''), r['seed'], order.index(r['name'])))
    put(path, rows)
    print(summary(name, r), flush=True)

def edge_row(images):
    "How wide the edges of images are."
    from mnistgen.ldm import edge_widths
    w = edge_widths(images)
    empty, w = w.isnan().sum().item(), w[~w.isnan()]
    quantiles = {f'{q}%': w.quantile(q/100).item() for q in (5, 25, 50, 75, 95)}
    return {'n': len(w), 'empty': empty, 'mean': w.mean().item(), '±': (w.std()/len(w)**.5).item(),
            **quantiles, **about()}

def edge_sets(models, test, n, seed):
    "{name: what gives the images}"
    import torch
    from measure import CACHE
    from mnistgen.comparison import samples, source_of
    from mnistgen.lab.options import Way
    from mnistgen.lab.data import to_uint8
    def drawn(k, way): return lambda: torch.cat(list(samples(source_of(models[k]), Way(way, n, seed), CACHE)))
    decoded = lambda: to_uint8(models['ldm'].space.autoencoder.reconstruct(test))
    sets = {'test images': lambda: test, 'test images, encoded and decoded': decoded}
    for name, ways in EDGES.items():
        for where, k in (('pixel', 'ddpm'), ('latent', 'ldm')): sets[f'{where}, {name}'] = drawn(k, ways[k])
    return sets

def edges(names, n, seed, again):
    "Widths of the edges of samples, of test images, and of those through the autoencoder."
    import mnistgen
    from mnistgen.lab.data import load_images
    path, models = RESULTS/'ldm-edges.json', {k: mnistgen.load(k, 'cpu') for k in ('ddpm', 'ldm')}
    which = dict(n=n, seed=seed, weights={k: m.header['checksum'] for k, m in models.items()})
    result = rows_of(path)
    if not result or again or any(result[k] != v for k, v in which.items()): result = which | dict(rows=[])
    sets = edge_sets(models, load_images(split='test').pixels[:n], n, seed)
    for name, draw in sets.items():
        wanted = not names or name.startswith('test') or any(name.endswith(f', {way}') for way in names)
        if not wanted or any(r['images'] == name for r in result['rows']): continue
        start = time.time()
        row = dict(images=name, **edge_row(draw()))
        result['rows'].append(row)
        result['rows'].sort(key=lambda r: list(sets).index(r['images']))
        put(path, result)
        took = time.time() - start
        print(f"{name}: {row['mean']:.3f} ± {row['±']:.3f}, drawn in {took:.0f} s", flush=True)

def main(a):
    if a.failures:
        for name in a.names or FAILURES:
            key = dict(name=name, recipe=a.recipe, epochs=a.epochs, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-failures.json', list(FAILURES), name, key, FAILURES[name],
                    ['failure', name, a.recipe, a.epochs, a.n, a.seed], a.again)
    if a.starts:
        for name in a.names or STARTS:
            key = dict(name=name, recipe=a.recipe, epochs=a.epochs, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-starts.json', list(STARTS), name, key, STARTS[name].json(),
                    ['start', name, a.recipe, a.epochs, a.n, a.seed], a.again)
    if a.variants:
        for name in a.names or VARIANTS:
            key = dict(name=name, minutes=a.minutes, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-variants.json', list(VARIANTS), name, key, VARIANTS[name],
                    ['variant', name, a.minutes, a.n, a.seed], a.again)
    if a.edges: edges(a.names, min(a.n, 1000), a.seed, a.again)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    print_anything()
    KINDS = dict(failures=FAILURES, starts=STARTS, variants=VARIANTS, edges=EDGES)
    p.add_argument('names', nargs='*')
    for kind in KINDS: p.add_argument(f'--{kind}', action='store_true')
    p.add_argument('--recipe', choices=list(RECIPES), default='quick', help="of the failures and the starts: ldm-fast's quick recipe (v), or the report's (ε), but for their epochs")
    p.add_argument('--epochs', type=int, default=40, help='of the failures and the starts')
    p.add_argument('--minutes', type=float, default=2., help='of the variants')
    p.add_argument('--n', type=int, default=2000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--again', action='store_true')
    p.add_argument('--worker', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        kind, *args = json.loads(a.worker)
        print(json.dumps(dict(failure=failure, start=start, variant=variant)[kind](*args)))
    else:
        chosen = [kind for kind in KINDS if getattr(a, kind)]
        if not chosen: p.error('choose --failures, --starts, --variants or --edges')
        there = [name for kind in chosen for name in KINDS[kind]]
        if odd := [k for k in a.names if k not in there]:
            p.error(f"unknown: {', '.join(odd)}; there are {', '.join(there)}")
        main(a)
