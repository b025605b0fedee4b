"""Judge a bundled model by numbers.

    python tools/measure.py ddpm [--only WORD] [--state FILE ...]

A plan is a list of ways for `mnistgen.compare`'s rows: this measures them, into
results/NAME-evaluation.json, and the headline into mnistgen/weights/scores.json, which
`mnistgen list` shows. What is there already for these weights is not done again, and samples are
kept in runs/evaluation/, some hundreds a file, so a stopped run goes on where it was. Started by
`accelerate launch` or `torchrun`, all processes share the drawing and the judging.

--state: the training state of a run of that model (runs/NAME/state.safetensors): its averaged and
its raw weights are compared."""
import argparse, json, sys, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling, Way

CHUNK = 250
CACHE = top/'runs'/'evaluation'

def ddim(steps, eta, **options): return Sampling('ddim', steps, eta=eta, **options)

DDPM = Sampling('ddpm', 1000)
SWEEP = [Way(ddim(S, eta)) for eta in (0., 1., .5) for S in (10, 20, 50, 100, 250)]

def blocks(sampling, k=5):
    "So many times 2,000 samples, each of other noise; five of them together are 10,000."
    return [Way(sampling, first=2000*i) for i in range(k)]

# where steps go and how warm noise is, on samples that no track of the speedrun is judged by
SETTINGS = [*((50, p, 1.) for p in (2., 1., 2/3, 1/2)),
            *((50, 2/3, τ) for τ in (.98, .96, .94)),
            (100, 1., 1.),
            (250, 1., 1.)]

PLANS = {'ddpm': [
    *SWEEP,
    *(Way(ddim(S, 1., spacing=p)) for S in (10, 20, 50) for p in (2., 2/3, 1/2)),
    Way(ddim(50, 1., spacing=2/3, temperature=.98)),
    *blocks(ddim(100, 1.)),
    *blocks(ddim(100, 0.), 3),
    *blocks(DDPM),
    Way(DDPM, n=10_000),
], 'ddpm-fast': [
    *(Way(ddim(S, 1., spacing=p, temperature=τ), first=10_000) for S, p, τ in SETTINGS),
], 'ldm': [
    *SWEEP,
    Way(ddim(100, .05)),                                             # the report's
    *(Way(ddim(S, 1., spacing=p)) for S in (20, 50) for p in (2/3, 1/2)),
    *(way for s in (ddim(100, 1.), DDPM) for way in blocks(s)),
    *(Way(s, n=10_000) for s in (ddim(100, .05), ddim(100, 1.), DDPM)),
], 'ldm-fast': [
    Way(ddim(100, 1.), n=10_000),
    *(Way(ddim(S, eta)) for eta in (0., 1.) for S in (20, 50, 100)),
    Way(DDPM),
], 'cfg-concat': [], 'cfg-xattn': [], 'cfg-fast': [],                # python benchmarks/guidance.py
    'rf': [], 'rf-latent': [],                                       # python benchmarks/flows.py
    'attributes-fast': [], 'cfg-attributes': [],                     # python benchmarks/attributes.py
    'rf-fast': [Way(Sampling('midpoint', 50, w=1.), n=10_000)],
    'one-step': [Way(Sampling('euler', S, w=w), n=10_000) for S, w in ((1, 1.), (1, 1.5), (4, 1.))],
}
AVERAGING = Way(ddim(50, 1.))

def headline_of(model):
    "What `mnistgen list` shows: the model's own way of sampling."
    from mnistgen.zoo.models import MODELS
    return Way(MODELS[model].sampling, n=10_000)

def row(g, way):
    "A row of results: how, with what, and all numbers. Samples are kept."
    from mnistgen.comparison import measure, source_of
    start, source = time.time(), source_of(g)
    record = measure(source, way, CACHE, CHUNK, at=())
    about = {*source.facts, 'model', 'weights', 'how'}               # the file says it once
    fd, real = record['train']['FD'], record['floor']['train']['FD']
    print(f'{way}: FD {fd:.2f} (real {real:.2f}), {time.time() - start:.0f} s', flush=True)
    return {k: v for k, v in record.items() if k not in about}

def of_state(path):
    "Generators with the averaged and with the raw weights of a training state; and its header."
    from mnistgen.lab.store import load_checkpoint
    from mnistgen.zoo.models import assemble
    try: tensors, h = load_checkpoint(path)
    except ValueError as e: sys.exit(str(e))
    if 'step' not in h: sys.exit(f'{path}: not the state of a training (state.safetensors)')
    def part(kind):
        start = kind + '.'
        return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    return {kind: assemble(part(kind), h, 'cpu') for kind in ('average', 'net')}, h

def headline(model, result):
    "Put the headline, if it has been measured, where `mnistgen list` finds it."
    from mnistgen.lab.store import write_atomically
    row = next((r for r in result['rows'] if Way.of(r['way']) == headline_of(model)), None)
    if row is None: return
    file = top/'mnistgen'/'weights'/'scores.json'
    scores = json.loads(file.read_text()) if file.exists() else {}
    shares = {k: row['train'][k] for k in ('precision', 'recall')}
    distances = dict(FD=row['train']['FD'], floor=row['floor']['train']['FD'])
    scores[model] = dict(weights=result['weights'], way=row['way'], **distances, **shares,
                         confident=row['confident'])
    write_atomically(file, lambda tmp: tmp.write_text(json.dumps(scores, indent=1) + '\n'))

def main(model, only, states):
    import mnistgen
    from mnistgen.lab.device import process_number
    from mnistgen.lab.store import write_atomically
    from mnistgen.zoo.generator import epochs_of
    g = mnistgen.load(model, 'cpu')
    weights, path = g.header['checksum'], top/'results'/f'{model}-evaluation.json'
    result = json.loads(path.read_text()) if path.exists() else {}
    if result.get('weights') != weights:
        result = dict(model=model, weights=weights, epochs=epochs_of(g.header), rows=[],
                      averaging=[])
    def put(rows, row):
        rows.append(row)
        if process_number()[0]: return        # the first of several processes writes
        write_atomically(path, lambda tmp: tmp.write_text(json.dumps(result, indent=1) + '\n'))
        headline(model, result)
    for way in dict.fromkeys([*PLANS[model], headline_of(model)]):
        done = any(Way.of(r['way']) == way for r in result['rows'])
        if only in str(way) and not done: put(result['rows'], row(g, way))
    for state in states:
        generators, h = of_state(state)
        epoch, lr = h.get('start', {}).get('epochs', 0) + len(h['history']), h['history'][-1]['lr']
        for kind, generator in generators.items():
            facts = dict(step=h['step'], epoch=epoch, lr=lr,
                         weights='averaged' if kind == 'average' else 'raw')
            done = any({k: r[k] for k in facts} == facts for r in result['averaging'])
            if done: continue
            put(result['averaging'], facts | row(generator, AVERAGING))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', choices=list(PLANS))
    p.add_argument('--only', default='',
                   help='a part of the name of a way, such as "2,000" or "DDIM-50"')
    p.add_argument('--state', nargs='*', default=[],
                   help='training states whose averaged and raw weights are compared')
    print_anything()
    a = p.parse_args()
    main(a.model, a.only, a.state)
