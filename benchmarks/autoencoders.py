"""What the autoencoders are worth: `python benchmarks/autoencoders.py vae vae-light [--betas] [--speed] [--stages runs/vae]`.

- NAME: how well it reconstructs (both splits), what its latents are like, and what noise decodes to,
  judged by 10,000 images; into results/NAME-evaluation.json (3 minutes).
- --betas: the light one trained anew with each weight of the nats, and with the weight rising; into
  results/vae-betas.json (4 minutes a row; finished rows are kept).
- --speed: seconds to encode and to decode, side by side (nothing else should run); into
  results/vae-speed.json.
- --stages RUN ...: latents of test images by the weights that runs kept, and their plane; into
  results/vae-latents.npz."""
import argparse, json, sys, tempfile, time
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
RESULTS = top/'results'
BETAS = [dict(beta=b, anneal=0.) for b in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
BETAS += [dict(beta=b, anneal=.5) for b in (1e-5, 1e-3)]
# a number is in use if its mean varies by more than this from image to image (Burda et al., 2016)
ACTIVE = .01

def put(path, result):
    from mnistgen.lab.store import write_atomically
    text = json.dumps(result, indent=1, ensure_ascii=False) + '\n'
    write_atomically(path, lambda tmp: tmp.write_text(text, encoding='utf-8'))

def about():
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions
    kept = {k: v for k, v in versions().items() if k in ('torch', 'commit')}
    return dict(device=device_info(pick_device('cpu'))['name'], **kept)

def error(a, x, z):
    "Mean squared error of images decoded from z, in the networks' range [-1, 1], as in training."
    import torch
    from mnistgen.lab.data import in_batches, normalize
    both = torch.arange(len(x))
    squares = lambda i: (a.net.decode(z[i], a.decoder) - normalize(x[i])).square().mean((1, 2, 3))
    return in_batches(squares, both, 250).mean().item()

def reconstruction(a, x):
    "Errors of the mode and of a draw, and the posterior, of images x (uint8)."
    import torch
    from mnistgen.lab.data import make_rng
    mean, logvar = a.posterior(x)
    drawn = mean + (logvar/2).exp()*torch.randn(mean.shape, generator=make_rng('posterior'))
    return dict(mode=error(a, x, mean), drawn=error(a, x, drawn)), mean, logvar

def judged(images, labels=None):
    from mnistgen.lab.data import to_uint8
    from mnistgen.zoo.evaluation import evaluate
    return dict(evaluate(to_uint8(images), labels))

def describe(mean, logvar):
    "What latents are like, number by number."
    import torch
    flat = mean.flatten(1).double()
    standard = (flat - flat.mean(0))/flat.std(0)
    return dict(scale=1/flat.std().item(), mean=flat.mean(0).tolist(), std=flat.std(0).tolist(),
                noise=(logvar.flatten(1)/2).exp().mean(0).tolist(),
                correlation=torch.corrcoef(flat.T).tolist(), kurtosis=(standard**4).mean(0).tolist())

def measure(name):
    "One bundled autoencoder, whole."
    import mnistgen
    from mnistgen.lab.data import load_images
    from mnistgen.vae import divergence
    a, train, test = mnistgen.load(name, 'cpu'), load_images(), load_images(split='test')
    result = dict(model=name, weights=a.header['checksum'], **about(), mse={})
    mse, few = result['mse'], test.pixels[:1000]
    mse['train'], _, _ = reconstruction(a, train.pixels[:10_000])    # as many as there are test images
    result['latents'] = describe(*a.posterior(train.pixels))
    mse['test'], mean, logvar = reconstruction(a, test.pixels)
    result['nats'] = divergence(mean, logvar).flatten(1).mean(0).tolist()
    plain = mnistgen.load(name, 'cpu', plain=True)                   # to see that half precision does not matter
    mse['test, 1000 images'] = {k: error(g, few, g.encode(few)) for k, g in (('fast', a), ('plain', plain))}
    result['reconstructions'] = judged(a.decode(mean), test.labels)
    result['noise'] = judged(a.sample(10_000, seed=0))
    put(RESULTS/f'{name}-evaluation.json', result)
    r, n = result['reconstructions'], result['noise']
    print(f"{name}: MSE {mse}; scale {result['latents']['scale']:.4f}; nats {sum(result['nats']):.1f}; "
          f"reconstructions FD {r['train']['FD']:.2f} (real {r['floor']['train']['FD']:.2f}), accuracy "
          f"{r['accuracy']:.2%} (real {r['floor']['accuracy']:.2%}); from noise FD {n['train']['FD']:.1f}", flush=True)

@contextmanager
def variant(setting, epochs):
    "The name of a model like the light autoencoder, with another weight of the nats, while it is needed."
    from dataclasses import replace
    from mnistgen.zoo.models import MODELS, add_model
    light = MODELS['vae-light']
    recipe = replace(light.recipes['quick'], epochs=epochs, process=setting, stages=(epochs,))
    add_model(**vars(light) | dict(name='vae-variant', recipes=dict(quick=recipe)))
    try: yield 'vae-variant'
    finally: del MODELS['vae-variant']

def trained(setting, epochs):
    "The light autoencoder with another weight of the nats, and the seconds of its training."
    import mnistgen
    from mnistgen.zoo.train import train_model
    with variant(setting, epochs) as name, tempfile.TemporaryDirectory() as tmp, redirect_stdout(StringIO()):
        record = train_model(name, out=tmp, device='cpu')
        return mnistgen.load(f'{tmp}/{name}.safetensors', 'cpu'), sum(e['seconds'] for e in record['history'])

def betas(epochs):
    "The light autoencoder with other weights of the nats."
    import torch
    from mnistgen.lab.data import load_images
    from mnistgen.lab.plotting import save_grid
    from mnistgen.vae import divergence
    path, test = RESULTS/'vae-betas.json', load_images(split='test')
    for setting in BETAS:
        rows = json.loads(path.read_text(encoding='utf-8')) if path.exists() else []
        key = dict(**setting, epochs=epochs, seed=0)
        if any({k: r[k] for k in key} == key for r in rows): continue
        a, seconds = trained(setting, epochs)
        mse, mean, logvar = reconstruction(a, test.pixels)
        r, noise = judged(a.decode(mean), test.labels), judged(a.sample(10_000, seed=0))
        floor = {'floor': r['floor']['train']['FD'], 'floor accuracy': r['floor']['accuracy']}
        row = key | dict(mse=mse, nats=divergence(mean, logvar).flatten(1).sum(1).mean().item(),
                         active=int((mean.flatten(1).var(0) > ACTIVE).sum()), scale=a.scale,
                         noise=(logvar/2).exp().mean().item(),
                         reconstructions={**r['train'], 'accuracy': r['accuracy'], **floor},
                         random={**noise['train'], 'confident': noise['confident']},
                         seconds=seconds, **about())
        grid = f"vae-beta-{setting['beta']:g}{'-annealed'*bool(setting['anneal'])}.png"
        save_grid(torch.cat([a.reconstruct(test.pixels[:10]), a.sample(10, seed=0)]), RESULTS/grid, ncol=10)
        put(path, rows + [row])
        print(f"{setting}: MSE {mse}, FD {r['train']['FD']:.2f}, accuracy {r['accuracy']:.2%}, "
              f"{row['nats']:.1f} nats, {row['active']} in use, from noise FD {noise['train']['FD']:.1f}", flush=True)

def speed(names=('vae', 'vae-light')):
    "Medians over repeats, in turn, after two to warm up."
    import torch
    import mnistgen
    from mnistgen.lab.data import load_images
    x, models, rows = load_images(split='test').pixels, {k: mnistgen.load(k, 'cpu') for k in names}, []
    for what, n in (('encode', 250), ('decode', 1), ('decode', 10), ('decode', 250)):
        z, times = torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(0)), {k: [] for k in models}
        repeats = 9 if n > 100 else 50
        for i in range(repeats + 2):
            for k, a in models.items():
                start = time.perf_counter()
                a.encode(x[:n]) if what == 'encode' else a.decode(z)
                if i > 1: times[k].append(time.perf_counter() - start)
        rows.append(dict(what=what, n=n, repeats=repeats, **{k: sorted(t)[repeats//2] for k, t in times.items()}))
        print(rows[-1], flush=True)
    put(RESULTS/'vae-speed.json', dict(rows=rows, weights={k: a.header['checksum'] for k, a in models.items()}, **about()))

def stages(runs, n=2000):
    "Latents of test images at the stages of a run (or of several, one after the other), and their plane."
    import numpy as np
    import mnistgen
    from mnistgen.lab.data import load_images
    from mnistgen.lab.store import read_header
    from mnistgen.zoo.evaluation import plane
    from mnistgen.zoo.generator import epochs_of
    test, out = load_images(split='test'), {}
    files = [f for run in runs for f in Path(run).glob('*-epoch-*.safetensors')]
    for file in sorted(files, key=lambda f: epochs_of(read_header(f))):
        a = mnistgen.load(file, 'cpu')
        epoch, z = epochs_of(a.header), a.encode(test.pixels[:n])
        out[f'z{epoch}'] = z.half().numpy()
        out[f'plane{epoch}'] = plane(z.flatten(1).numpy())[0].astype(np.float32)
    np.savez_compressed(RESULTS/'vae-latents.npz', labels=test.labels[:n].numpy().astype(np.uint8),
                        weights=a.header['checksum'], **out)
    print(*out)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*')
    p.add_argument('--betas', action='store_true')
    p.add_argument('--speed', action='store_true')
    p.add_argument('--stages', nargs='+', help='folders of runs that kept weights')
    p.add_argument('--epochs', type=int, default=2, help='of the runs of --betas')
    a = p.parse_args()
    for name in a.names: measure(name)
    if a.stages: stages(a.stages)
    if a.betas: betas(a.epochs)
    if a.speed: speed()
