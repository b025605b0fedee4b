"""Judge a bundled model by numbers: `python tools/measure.py ddpm [--only WORD] [--state FILE ...]`.

Draws samples in all the ways of its plan and evaluates them, into results/NAME-evaluation.json, and the headline into
mnistgen/weights/scores.json, which `mnistgen list` shows. What is there already for these weights is not done again, and
samples are kept in runs/evaluation/, some hundreds a file, so a stopped run goes on where it was.

--state: the training state of a run of that model (runs/NAME/state.safetensors): its averaged and its raw weights are compared."""
import argparse, json, sys, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
CHUNK = 250
SWEEP = [dict(sampler='ddim', steps=S, eta=eta) for eta in (0., 1., .5) for S in (10, 20, 50, 100, 250)]
BLOCKS = [{}, *(dict(start=s) for s in (2000, 4000, 6000, 8000))]                    # other numbers, other noise: as good as other seeds, and together they are 10,000
PLANS = {'ddpm': [
    *(dict(w, n=2000, seed=0) for w in SWEEP),
    *(dict(sampler='ddim', steps=S, eta=1., spacing=p, n=2000, seed=0) for S in (10, 20, 50) for p in (2., 2/3, 1/2)),
    dict(sampler='ddim', steps=50, eta=1., spacing=2/3, temperature=.98, n=2000, seed=0),
    dict(sampler='ddpm', steps=1000, n=2000, seed=0),
    *(dict(sampler='ddim', steps=100, eta=1., n=2000, seed=0, **b) for b in BLOCKS),
    *(dict(sampler='ddim', steps=100, eta=0., n=2000, seed=0, **b) for b in BLOCKS[:3]),
    *(dict(sampler='ddpm', steps=1000, n=2000, seed=0, **b) for b in BLOCKS),
    dict(sampler='ddpm', steps=1000, n=10_000, seed=0),
], 'ddpm-fast': [
    *(dict(sampler='ddim', steps=S, eta=1., spacing=p, temperature=τ, n=2000, seed=0, start=10_000)     # all said: what is left out is the model's own; and beyond the samples that the speedrun's tracks judge
      for S, p, τ in [(50, p, 1.) for p in (2., 1., 2/3, 1/2)] + [(50, 2/3, τ) for τ in (.98, .96, .94)] + [(100, 1., 1.), (250, 1., 1.)]),
], 'ldm': [
    *(dict(w, n=2000, seed=0) for w in SWEEP),
    dict(sampler='ddim', steps=100, eta=.05, n=2000, seed=0),                                      # the report's
    *(dict(sampler='ddim', steps=S, eta=1., spacing=p, n=2000, seed=0) for S in (20, 50) for p in (2/3, 1/2)),
    *(dict(sampler=s, **kw, n=2000, seed=0, **b) for s, kw in (('ddim', dict(steps=100, eta=1.)), ('ddpm', dict(steps=1000))) for b in BLOCKS),
    dict(sampler='ddim', steps=100, eta=.05, n=10_000, seed=0),
    dict(sampler='ddim', steps=100, eta=1., n=10_000, seed=0),
    dict(sampler='ddpm', steps=1000, n=10_000, seed=0),
], 'ldm-fast': [
    dict(sampler='ddim', steps=100, eta=1., n=10_000, seed=0),
    *(dict(w, n=2000, seed=0) for w in SWEEP if w['eta'] != .5 and w['steps'] in (20, 50, 100)),
    dict(sampler='ddpm', steps=1000, n=2000, seed=0),
]}
AVERAGING = dict(sampler='ddim', steps=50, eta=1., n=2000, seed=0)

def headline_of(model):
    "What `mnistgen list` shows: the model's own way of sampling."
    from mnistgen.zoo.models import MODELS
    return dict(MODELS[model].sampling, n=10_000, seed=0)

def name_of(way): return ' '.join(f'{k} {v}' for k, v in way.items())

def samples(g, weights, way):
    "The samples of a way as bytes (n, 28, 28): those on the disk, and the others drawn and put there."
    import numpy as np, torch
    from mnistgen.lab.data import to_uint8
    from mnistgen.lab.store import write_atomically
    folder = top/'runs'/'evaluation'/weights/name_of({k: v for k, v in way.items() if k not in ('n', 'start')}).replace(' ', '-')
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    first = way.get('start', 0)
    for start in range(first, first + way['n'], CHUNK):
        path = folder/f'{start:06d}.npy'
        if not path.exists():
            for _, x, _ in g.stream(**{**way, 'n': min(CHUNK, first + way['n'] - start), 'start': start}, decoded=False): pass
            images = to_uint8(g.space.decode(x).cpu())
            def write(tmp):
                with open(tmp, 'wb') as f: np.save(f, images.numpy())
            write_atomically(path, write)
        out.append(torch.from_numpy(np.load(path)))
    return torch.cat(out)

def measure(g, weights, way, about):
    "A row of results: how, with what, and all numbers."
    from mnistgen.zoo.evaluation import evaluate
    start = time.time()
    images = samples(g, weights, way)
    sampled = time.time()
    scores = evaluate(images)
    print(f"{name_of(way)}: FD {scores['train']['FD']:.2f} (real {scores['floor']['train']['FD']:.2f}), drawn in {sampled - start:.0f} s, judged in {time.time() - sampled:.0f} s", flush=True)
    return about | dict(way=way, **scores)

def of_state(path):
    "Two generators, with the averaged and with the raw weights of a training state; and its header."
    from mnistgen.lab.store import load_checkpoint
    from mnistgen.zoo.models import assemble
    tensors, h = load_checkpoint(path)
    part = lambda kind: {k.removeprefix(kind + '.'): v for k, v in tensors.items() if k.startswith(kind + '.')}
    return {kind: assemble(part(kind), h, 'cpu') for kind in ('average', 'net')}, h

def headline(model, result):
    "Put the headline, if it has been measured, where `mnistgen list` finds it."
    from mnistgen.lab.store import write_atomically
    if row := next((r for r in result['rows'] if r['way'] == headline_of(model)), None):
        file = top/'mnistgen'/'weights'/'scores.json'
        scores = json.loads(file.read_text()) if file.exists() else {}
        scores[model] = dict(weights=result['weights'], way=row['way'], FD=row['train']['FD'], floor=row['floor']['train']['FD'], precision=row['train']['precision'], recall=row['train']['recall'], confident=row['confident'])
        write_atomically(file, lambda tmp: tmp.write_text(json.dumps(scores, indent=1) + '\n'))

def main(model, only, states):
    import mnistgen
    from mnistgen.lab.device import device_info
    from mnistgen.lab.store import versions, write_atomically
    from mnistgen.zoo.models import epochs_of
    g = mnistgen.load(model, 'cpu')
    weights, path = g.header['checksum'], top/'results'/f'{model}-evaluation.json'
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get('weights') != weights: result = dict(model=model, weights=weights, epochs=epochs_of(g.header), rows=[], averaging=[])
    about = dict(device=device_info(g.device)['name'], **{k: v for k, v in versions().items() if k in ('torch', 'commit')})
    def put(rows, row):
        rows.append(row)
        write_atomically(path, lambda tmp: tmp.write_text(json.dumps(result, indent=1) + '\n'))
        headline(model, result)
    for way in [*PLANS[model], headline_of(model)]:
        if only in name_of(way) and all(r['way'] != way for r in result['rows']): put(result['rows'], measure(g, weights, way, about))
    for state in states:
        generators, h = of_state(state)
        for kind, generator in generators.items():
            facts = dict(step=h['step'], epoch=h.get('start', {}).get('epochs', 0) + len(h['history']), lr=h['history'][-1]['lr'], weights='averaged' if kind == 'average' else 'raw')
            if all({k: r[k] for k in facts} != facts for r in result['averaging']): put(result['averaging'], measure(generator, f"{h['checksum']}-{kind}", AVERAGING, about | facts))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', choices=list(PLANS)); p.add_argument('--only', default='', help='a part of the name of a way, such as "n 2000" or "ddim"')
    p.add_argument('--state', nargs='*', default=[], help='training states whose averaged and raw weights are compared')
    a = p.parse_args()
    main(a.model, a.only, a.state)
