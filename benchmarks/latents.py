"""Latent diffusion, varied: `python benchmarks/latents.py --failures | --starts | --variants | --edges [NAME ...] [--seed 0]`.

- --failures: the same training of `ldm-fast`'s network with one thing wrong at a time; into results/ldm-failures.json (4 minutes a row; autoencoders that have hardly been trained come first, a few minutes more).
- --starts: `ldm-fast`'s network with nothing wrong, asked for v or for ε, sampled from other first times; into results/ldm-starts.json (a minute a row).
- --variants: networks with and without the padding of the report's, for the same minutes of wall clock; into results/ldm-variants.json (4 minutes a row).
- --edges: how sharp the samples of the bundled pixel and latent models are; into results/ldm-edges.json (samples that tools/measure.py has kept are not drawn again).

Each training runs in a process of its own and leaves a small grid beside the numbers. Rows that are there are not measured again (--again does).
Latents are encoded once and kept in runs/latents/, as those autoencoders are."""
import argparse, json, math, os, re, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
RESULTS, KEPT = top/'results', top/'runs'/'latents'
sys.path[:0] = [str(top), str(top/'tools'), str(top/'benchmarks')]
from autoencoders import about, put

# what is wrong, in the settings of FAILURES: factor, of the scale; drawn, latents are drawn instead of their mode; clip, to [-1, 1] when sampling; autoencoder, another than the bundled `vae`: one of its
# recipe that has seen so many images, once; like, which other's training it shares
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

SMALL = dict(in_channels=2, out_channels=2, pad_to=None)
ADAMW = dict(optimizer='adamw')
VARIANTS = {name: dict(net=net, network=network, recipe=recipe, why=why) for name, net, network, recipe, why in [
    ('padded UNet', 'UNet', SMALL | dict(channels=(64, 128), pad_to=8), {}, "the report's: 4×4 padded to 8×8, and 4×4 below"),
    ('padded UNet, AdamW', 'UNet', SMALL | dict(channels=(64, 128), pad_to=8), ADAMW, "the same with the report's optimiser"),
    ('two levels, no padding', 'UNet', SMALL | dict(channels=(64, 128)), {}, 'the same on 4×4 and 2×2, the regime the report avoids: equal parameters, a quarter of the arithmetic'),
    ('one level', 'UNet', SMALL | dict(channels=(128,)), {}, 'what the report proposes: equal parameters, half of the arithmetic'),
    ('transformer', 'Patches', dict(width=160, blocks=5, heads=5, shape=(2, 4, 4), patch=1), {}, '16 tokens of two numbers: equal parameters'),
    ('MLP, Muon', 'MLP', dict(width=512, blocks=4), {}, '32 numbers without a grid, with the same optimiser as the UNets: equal parameters'),
    ('MLP', 'MLP', dict(width=512, blocks=4), ADAMW | dict(batch_size=512, lr=2e-3), 'where a step is this cheap, it should cost little beside the network, and take many images at once'),
]}

def slug(name): return re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')

def posterior(weights):
    "Mean and log-variance of the latents of the training and of the test images: ((n, 2, 4, 4), (n, 2, 4, 4)) of each; encoded once for each autoencoder."
    from mnistgen.lab.data import load_images
    from mnistgen.lab.store import load_checkpoint, save_checkpoint
    from mnistgen.zoo.models import load
    a = load(weights, 'cpu')
    path = KEPT/f"{a.header['checksum']}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {f'{split}.{k}': v for split in ('train', 'test') for k, v in zip(('mean', 'logvar'), a.posterior(load_images(split=split).pixels))}
        save_checkpoint(path, parts, dict(autoencoder=a.header['checksum']))
    tensors, _ = load_checkpoint(path)
    return a, *[(tensors[f'{split}.mean'], tensors[f'{split}.logvar']) for split in ('train', 'test')]

def trained_briefly(images):
    "The weights of an autoencoder of the bundled one's kind that has seen so many images, once."
    from mnistgen.zoo.models import train_model
    out = KEPT/f'vae-{images}'
    if not (out/'vae.safetensors').exists(): train_model('vae', epochs=1, limit=images, out=out, device='cpu', resume=(out/'state.safetensors').exists())
    return out/'vae.safetensors'

def network(net, kw):
    from ideas import extras
    from mnistgen.ldm import MLP
    out = (extras() | dict(MLP=MLP))[net](**kw)
    if net == 'Patches': out.leave = out._modules.pop('leave')        # comes last, as in the others, so that Muon leaves it to AdamW
    return out

def drawn_batches(mean, logvar, batch_size, seed):
    "Batches of draws from the posterior, new ones in each epoch."
    import torch
    from mnistgen.lab.data import Batches, make_rng
    gen, c = make_rng('drawn', seed), mean.shape[1]
    return Batches(torch.cat([mean, (logvar/2).exp()], 1), batch_size=batch_size, seed=seed, transform=lambda m: m[:, :c] + m[:, c:]*torch.randn(m[:, c:].shape, generator=gen))

def trained(net, process, space, recipe, train, test, drawn=False):
    "The trainer after its training."
    from mnistgen.lab.data import Batches
    from mnistgen.lab.training import Trainer
    batches = Batches(space.scale*train[0], batch_size=recipe.batch_size, seed=recipe.seed)
    if drawn: batches = drawn_batches(space.scale*train[0], train[1] + 2*math.log(space.scale), recipe.batch_size, recipe.seed)
    with tempfile.TemporaryDirectory() as tmp:
        t = Trainer('latents', net, process, batches, Batches(space.scale*test[0], batch_size=250, seed=recipe.seed), recipe, tmp, 'cpu')
        t.fit()
    return t

def drawn_samples(g, n, chunk=250, **way):
    "Latents of n samples, in the generator's own way or another."
    import torch
    out = []
    for start in range(0, n, chunk):
        for _, z, _ in g.stream(min(chunk, n - start), start=start, decoded=False, **way): pass
        out.append(z)
    return torch.cat(out)

def judged(images, grid):
    from mnistgen.lab.data import to_uint8
    from mnistgen.zoo.evaluation import evaluate
    from mnistgen.lab.plotting import save_grid
    save_grid(images[:16], RESULTS/grid)
    s, keep = evaluate(to_uint8(images)), ('FD', 'FD∞', 'precision', 'recall')
    return dict(grid=grid, **{k: s['train'][k] for k in keep}, confident=s['confident'], border=s['border'], floor={k: s['floor']['train'][k] for k in keep} | dict(confident=s['floor']['confident'], border=s['floor']['border']))

# where sampling begins
STARTS = {'DDPM-1000': dict(sampler='ddpm', steps=1000), **{f'DDIM-{S}': dict(sampler='ddim', steps=S, eta=1.) for S in (500, 250, 100)}, 'DDIM-100, trailing': dict(sampler='ddim', steps=100, eta=1., spacing='trailing')}

# ---- in a worker

RECIPES = {'quick': 'ldm-fast', 'report': 'ldm'}      # of the failures: whose quick or report's recipe it is; both with AdamW and batches of 512, the first asks for v, the second for ε

def learned(name, kind, epochs, seed):
    "A generator whose training had one thing wrong, its test latents, and its losses; trained once, and kept."
    import torch
    from dataclasses import replace
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.store import load_checkpoint, save_checkpoint
    from mnistgen.zoo.models import MODELS, Generator
    from mnistgen.ldm import Latents
    s, model = FAILURES[name], MODELS['ldm-fast']
    a, train, test = posterior(s['autoencoder'] if s['autoencoder'] in MODELS else trained_briefly(s['autoencoder']))
    space = Latents(a, s['factor']/train[0].double().std().item())
    recipe = replace(MODELS[RECIPES[kind]].recipes[kind], epochs=epochs, stages=(), seed=seed)
    process = DDPM(**recipe.process | dict(clip=s['clip']))
    torch.manual_seed(seed)
    net = network('MLP', model.network)
    kept = KEPT/f"{slug(s['like'] or name)}-{kind}-{epochs}-{seed}-{a.header['checksum'][:8]}.safetensors"      # clipping comes after training: it need not be trained again
    if not kept.exists():
        t = trained(net, process, space, recipe, train, test, s['drawn'])
        last = t.record['history'][-1]
        save_checkpoint(kept, t.average.state_dict(), dict(train_loss=last['train_loss'], eval_loss=last['eval_loss'], seconds=sum(e['seconds'] for e in t.record['history'])))
    tensors, losses = load_checkpoint(kept)
    net.load_state_dict(tensors)
    return Generator(net, process, space, model.sampling), space.scale*test[0], {k: losses[k] for k in ('train_loss', 'eval_loss', 'seconds')}

def failure(name, kind, epochs, n, seed):
    "Train with one thing wrong, draw in a hundred steps and in a thousand, judge."
    from mnistgen.zoo.evaluation import get_judge
    g, test, losses = learned(name, kind, epochs, seed)
    ways = {'DDIM-100': g.sampling, 'DDPM-1000': dict(sampler='ddpm', steps=1000)}
    def drawn_by(way):
        z = drawn_samples(g, n, **ways[way])
        return dict(way=ways[way], std=z.std().item(), **judged(g.space.decode(z), f'ldm-failure-{slug(name)}-{kind}-{slug(way)}.png'))
    real = g.space.autoencoder.reconstruct(get_judge().test.pixels[get_judge().order('test')[:n]])
    return dict(scale=g.space.scale, **losses, std=test.std().item(), decoded=judged(real, f'ldm-failure-{slug(name)}-decoded.png'), drawn={way: drawn_by(way) for way in ways})

def start(name, kind, epochs, n, seed, chunk=250):
    "A network with which nothing is wrong, sampled from another first time: how latents are spread along the way, how many have grown to twice their size, and what comes of it."
    import torch
    g, test, losses = learned('nothing', kind, epochs, seed)
    way = STARTS[name]
    times = g.process.steps(way['steps'], way.get('spacing', 'leading'))
    (ᾱt, ᾱs), σ = g.process.signal(*times[0]), g.process.sigma(*times[0], 1.)
    variances, out = [], []
    for first in range(0, n, chunk):
        along = []
        for _, z, _ in g.stream(min(chunk, n - first), start=first, decoded=False, **way): along.append(z.var())
        variances.append(torch.stack(along)); out.append(z)
    z = torch.cat(out)
    return dict(way=way, first=times[0], growth=math.sqrt(ᾱs/ᾱt*(1 - ᾱt)) - math.sqrt(max(0., 1 - ᾱs - σ**2)), **losses, path=dict(t=[s for _, s in times], std=torch.stack(variances).mean(0).sqrt().tolist()), std=z.std().item(), lost=(z.square().mean((1, 2, 3)).sqrt() > 2).float().mean().item(), **judged(g.space.decode(z), f'ldm-start-{kind}-{slug(name)}.png'))

def variant(name, minutes, n, seed):
    "Train a network for so many minutes, draw, judge, and see how long it takes for few images."
    import torch
    from dataclasses import replace
    from torch.utils.flop_counter import FlopCounterMode
    from mnistgen.ddpm import DDPM
    from mnistgen.zoo.models import MODELS, Generator
    from mnistgen.ldm import Latents
    s, model = VARIANTS[name], MODELS['ldm']
    a, train, test = posterior(model.autoencoder)
    space, recipe = Latents(a), replace(model.recipes['quick'], epochs=10_000, minutes=minutes, stages=None, seed=seed, **s['recipe'])
    process, counter = DDPM(**recipe.process), FlopCounterMode(display=False)
    torch.manual_seed(seed)
    net = network(s['net'], s['network'])
    with counter, torch.no_grad(): net(torch.zeros(1, *space.shape), torch.zeros(1))
    t = trained(net, process, space, recipe, train, test)
    g, spent = Generator(t.average, process, space, model.sampling), sum(e['seconds'] for e in t.record['history'])
    start = time.time(); z = drawn_samples(g, n); drawing = time.time() - start
    def best(k):
        times = []
        for _ in range(4): start = time.perf_counter(); g.sample(k); times.append(time.perf_counter() - start)
        return min(times[1:])
    grid = f'ldm-variant-{slug(name)}{f"-{seed}"*bool(seed)}.png'
    return dict(parameters=t.record['parameters'], mflop=counter.get_total_flops()/1e6, optimizer=recipe.optimizer, batch_size=recipe.batch_size, steps=t.step, images_per_second=t.step*recipe.batch_size/spent, eval_loss=t.record['history'][-1]['eval_loss'], drawing=drawing,
                seconds={str(k): best(k) for k in (1, 10)}, sampling=model.sampling, **judged(space.decode(z), grid))

# ---- in the parent

def rows_of(path): return json.loads(path.read_text()) if path.exists() else []

def measure(path, order, name, key, setting, call, again):
    "A row, in a process of its own, unless it is there."
    if not again and any({k: r[k] for k in key} == key for r in rows_of(path)): return
    p = subprocess.run([sys.executable, __file__, '--worker', json.dumps(call)], env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE, text=True)
    if p.returncode: sys.exit(f'{name}: failed')
    r = key | dict(setting=setting) | about() | json.loads(p.stdout.splitlines()[-1])
    rows = [q for q in rows_of(path) if {k: q[k] for k in key} != key] + [r]
    put(path, sorted(rows, key=lambda r: (r.get('recipe', ''), r['seed'], order.index(r['name']))))
    print(f"{name}: eval loss {r['eval_loss']:.4f}, " + '; '.join(f"{way + ' '*bool(way)}FD {q['FD']:.2f} (real {q['floor']['FD']:.2f}), P {q['precision']:.3f} R {q['recall']:.3f}, confident {q['confident']:.1%}" for way, q in r.get('drawn', {'': r}).items()) + (f", {r['steps']} steps" if 'steps' in r else ''), flush=True)

WAYS = {'DDPM-1000': {k: dict(sampler='ddpm', steps=1000) for k in ('ddpm', 'ldm')}, "DDIM-100, as the report's": dict(ddpm=dict(sampler='ddim', steps=100, eta=0.), ldm=dict(sampler='ddim', steps=100, eta=.05)),
        'DDIM-100, η = 1': {k: dict(sampler='ddim', steps=100, eta=1.) for k in ('ddpm', 'ldm')}}

def edges(names, n, seed, again):
    "Widths of the edges of samples, of test images, and of those through the autoencoder. What is there already for these weights is not measured again."
    import mnistgen
    from mnistgen.ldm import edge_widths
    from mnistgen.lab.data import load_images, to_uint8
    from measure import samples
    path, models, test = RESULTS/'ldm-edges.json', {k: mnistgen.load(k, 'cpu') for k in ('ddpm', 'ldm')}, load_images(split='test').pixels[:n]
    which = dict(n=n, seed=seed, weights={k: m.header['checksum'] for k, m in models.items()})
    result = rows_of(path)
    if not result or again or any(result[k] != v for k, v in which.items()): result = which | dict(rows=[])
    sets = {'test images': lambda: test, 'test images, encoded and decoded': lambda: to_uint8(models['ldm'].space.autoencoder.reconstruct(test)),
            **{f'{where}, {name}': lambda k=k, name=name: samples(models[k], models[k].header['checksum'], dict(WAYS[name][k], n=n, seed=seed)) for name in WAYS for where, k in (('pixel', 'ddpm'), ('latent', 'ldm'))}}
    for name, draw in sets.items():
        if any(r['images'] == name for r in result['rows']) or names and not any(name.endswith(f', {way}') for way in names) and not name.startswith('test'): continue
        start, w = time.time(), edge_widths(draw())
        empty, w = w.isnan().sum().item(), w[~w.isnan()]
        row = dict(images=name, n=len(w), empty=empty, mean=w.mean().item(), **{'±': (w.std()/len(w)**.5).item()}, **{f'{q}%': w.quantile(q/100).item() for q in (5, 25, 50, 75, 95)}, **about())
        result['rows'] = sorted([*result['rows'], row], key=lambda r: list(sets).index(r['images']))
        put(path, result)
        print(f"{name}: {row['mean']:.3f} ± {row['±']:.3f}, drawn in {time.time() - start:.0f} s", flush=True)

def main(a):
    if a.failures:
        for name in a.names or FAILURES:
            key = dict(name=name, recipe=a.recipe, epochs=a.epochs, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-failures.json', list(FAILURES), name, key, FAILURES[name], ['failure', name, a.recipe, a.epochs, a.n, a.seed], a.again)
    if a.starts:
        for name in a.names or STARTS:
            key = dict(name=name, recipe=a.recipe, epochs=a.epochs, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-starts.json', list(STARTS), name, key, STARTS[name], ['start', name, a.recipe, a.epochs, a.n, a.seed], a.again)
    if a.variants:
        for name in a.names or VARIANTS:
            key = dict(name=name, minutes=a.minutes, n=a.n, seed=a.seed)
            measure(RESULTS/'ldm-variants.json', list(VARIANTS), name, key, VARIANTS[name], ['variant', name, a.minutes, a.n, a.seed], a.again)
    if a.edges: edges(a.names, min(a.n, 1000), a.seed, a.again)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*'); p.add_argument('--failures', action='store_true'); p.add_argument('--starts', action='store_true'); p.add_argument('--variants', action='store_true'); p.add_argument('--edges', action='store_true')
    p.add_argument('--recipe', choices=('quick', 'report'), default='quick', help="of the failures and the starts: ldm-fast's quick recipe (v), or the report's (ε), but for their epochs")
    p.add_argument('--epochs', type=int, default=40, help='of the failures and the starts'); p.add_argument('--minutes', type=float, default=2., help='of the variants')
    p.add_argument('--n', type=int, default=2000); p.add_argument('--seed', type=int, default=0); p.add_argument('--again', action='store_true'); p.add_argument('--worker', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.worker:
        kind, *args = json.loads(a.worker)
        print(json.dumps(dict(failure=failure, start=start, variant=variant)[kind](*args)))
    else:
        there = {**(FAILURES if a.failures else {}), **(STARTS if a.starts else {}), **(VARIANTS if a.variants else {}), **(WAYS if a.edges else {})}
        if not (a.failures or a.starts or a.variants or a.edges): p.error('choose --failures, --starts, --variants or --edges')
        if odd := [k for k in a.names if k not in there]: p.error(f"unknown: {', '.join(odd)}; there are {', '.join(there)}")
        main(a)
