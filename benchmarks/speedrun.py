"""What a few minutes of CPU are worth: `make speedrun` (10 minutes of training) or `make speedrun MINUTES=60`.

Trains for MINUTES of wall clock from a cold start (imports and compilation count), draws 10,000 digits in 50 evaluations of the network each,
judges them, prints the row beside those of the same minutes that were measured before, and draws the grid.

    python benchmarks/speedrun.py --minutes 10 --all --seeds 2      # every contender, one after the other, each in a fresh process

The contenders:
- ddpm-fast:   this library's fast network and recipe; the default
- ddpm:        the report's UNet with this library's recipe, `quick`
- tutorial:    the same UNet as diffusers' UNet2DModel, trained with its DDPMScheduler as its tutorial does it: float32, batch 16, AdamW 1e-4 with 500 steps of warm-up and a cosine, the linear schedule, ε
- report:      the report's recipe with the same classes: AdamW 1e-3 with a cosine, EMA 0.995, the cosine schedule, ε; at diffusers' best speed (bfloat16, torch.compile), batch 128
The samples of all are drawn by this library, which has been tested to be equal to diffusers."""
import argparse, json, math, os, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
CONTENDERS = 'ddpm-fast', 'ddpm', 'tutorial', 'report'
SAMPLING = dict(sampler='ddim', steps=50, eta=1., spacing=2/3, temperature=.98)

# ---- in a worker: train until the time is up, write weights

def ours(model, minutes, seed, out, start):
    from mnistgen.zoo.models import train_model
    record = train_model(model, 'quick', minutes=minutes, seed=seed, out=out, device='cpu', since=start)
    last = record['history'][-1]
    return dict(steps=last['step'], batch=record['recipe']['batch_size'], seconds=record['setup_seconds'] + sum(e['seconds'] for e in record['history']), weights=str(out/f'{model}.safetensors'))

def theirs(kind, minutes, seed, out, start):
    "diffusers' network, scheduler and average, trained in its documented way."
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel
    from engine import half, reference
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.data import load_images, normalize, reflect_pad
    from mnistgen.lab.store import save_checkpoint
    from mnistgen.lab.training import Recipe
    from mnistgen.unet import UNet
    torch.manual_seed(seed)
    contender, B, recipe = ('eager', 16, Recipe(lr=1e-4, lr_min=0., warmup=500)) if kind == 'tutorial' else ('best', 128, Recipe())
    schedule = 'linear' if kind == 'tutorial' else 'cosine'
    net, run = reference(contender, 'pixel')
    scheduler = DDPMScheduler(beta_schedule={'linear': 'linear', 'cosine': 'squaredcos_cap_v2'}[schedule])
    optimizer = torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay if kind == 'report' else .01, **({'fused': True} if contender == 'best' else {}))
    ema = EMAModel(net.parameters(), decay=.995) if kind == 'report' else None
    images, step, first, n = load_images().pixels, 0, None, len(load_images().pixels)//B
    while (now := time.time() - start) < 60*minutes:
        if step % n == 0: order = torch.randperm(len(images))
        x = reflect_pad(normalize(images[order[step % n*B:][:B]]), 32)
        if contender == 'best': x = x.contiguous(memory_format=torch.channels_last)
        ε, t = torch.randn_like(x), torch.randint(1000, (B,))
        with half(contender): out_ = run(scheduler.add_noise(x, ε, t), t).sample
        loss = F.mse_loss(out_.float(), ε)
        loss.backward()
        # the rate follows the clock, as ours does: the time of the first steps, with the compilation in it, is not projected
        first = first or (now, step) if step < 20 else first
        total = step + math.ceil((60*minutes - now)*(step - first[1])/(now - first[0])) if step > first[1] else 10**9
        for g in optimizer.param_groups: g['lr'] = recipe.lr_at(step, total)
        optimizer.step(); optimizer.zero_grad()
        if ema: ema.step(net.parameters())
        step += 1
    spent = time.time() - start
    if ema: ema.copy_to(net.parameters())
    mine = UNet.from_diffusers({k: v.contiguous() for k, v in net.state_dict().items()}, pad_to=32)
    process = DDPM(schedule=schedule)
    save_checkpoint(out/'ddpm.safetensors', mine.state_dict(), dict(model='ddpm', network=mine.config, process_config=process.config, epochs=round(step*B/len(images), 2), train_loss=None, eval_loss=None))
    return dict(steps=step, batch=B, seconds=spent, weights=str(out/'ddpm.safetensors'))

# ---- in another: draw and judge

def judge(weights, n, grid):
    import torch, mnistgen
    from mnistgen.lab.data import to_uint8
    from mnistgen.zoo.evaluation import evaluate
    from mnistgen.lab.plotting import save_grid
    g, start = mnistgen.load(weights, 'cpu'), time.time()
    images = g.sample(n, **SAMPLING, seed=0)
    drawn = time.time() - start
    save_grid(images[:64], grid)
    s = evaluate(to_uint8(images))
    keep = ('FD', 'FD∞', 'precision', 'recall')
    return dict(n=n, sampling=SAMPLING, drawn=drawn, parameters=sum(p.numel() for p in g.net.parameters()), confident=s['confident'], border=s['border'], chi2=s['chi2'], novelty=s['novelty'], **{k: s['train'][k] for k in keep},
                floor={k: s['floor']['train'][k] for k in keep} | {k: s['floor'][k] for k in ('confident', 'border')})

# ---- in the parent

def call(*args):
    "This script in a fresh process, with the last line of what it prints."
    start = time.time()
    p = subprocess.run([sys.executable, __file__, '--worker', json.dumps([*args, start])], env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE, text=True)
    if p.returncode: sys.exit(f'{args[0]}: failed')
    return json.loads(p.stdout.splitlines()[-1])

def work(job, *args):
    *args, start = args
    if job == 'judge': return judge(*args)
    contender, minutes, seed, out = args
    return (theirs if contender in ('tutorial', 'report') else ours)(contender, minutes, seed, Path(out), start)

def row(r):
    "What is printed of a measurement."
    return {'contender': r['contender'], 'seed': r['seed'], 'steps': r['steps'], 'batch': r['batch'], 'images/s': f"{r['steps']*r['batch']/r['seconds']:.0f}", 'FD': f"{r['FD']:.2f}", 'FD / real': f"{r['FD']/r['floor']['FD']:.1f}",
            **{k: f'{r[k]:.3f}' for k in ('precision', 'recall')}, 'confident': f"{r['confident']:.1%}", 'border': f"{r['border']:.2f}", 'device': r['device']}

def ratios(rows):
    "(ours, theirs, how many times smaller the distance of ours is) for all there are; of rows of one machine, since minutes of two do not compare."
    mean = {c: sum(fds)/len(fds) for c in CONTENDERS if (fds := [q['FD'] for q in rows if q['contender'] == c])}
    return [(mine, c, mean[c]/mean[mine]) for mine in CONTENDERS[:2] for c in CONTENDERS[2:] if mine in mean and c in mean]

def main(minutes, contenders, seeds, n, out, again=False):
    sys.path.insert(0, str(top))
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions, write_atomically
    from mnistgen.lab.plotting import Table
    path, out = top/'results'/f'speedrun-{minutes:g}.json', Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rows = next((json.loads(p.read_text()) for p in (out/path.name, path) if p.exists()), [])      # of earlier runs here, or of ours
    kept = lambda contender, seed: out/f'speedrun-{minutes:g}-{contender}-{seed}.safetensors'
    todo = [(c, s) for s in seeds for c in contenders] if not again else [(q['contender'], q['seed']) for q in rows if q['n'] == n and kept(q['contender'], q['seed']).exists()]
    if not todo: sys.exit(f'{out}: no weights of {minutes:g} minutes, whose {n:,} samples were judged before')
    for contender, seed in todo:
        weights, key = kept(contender, seed), dict(contender=contender, seed=seed, n=n)
        if again: r = next(q for q in rows if {k: q[k] for k in key} == key)
        else:
            with tempfile.TemporaryDirectory() as tmp:
                print(f'{contender}, seed {seed}: {minutes:g} minutes of training …', file=sys.stderr, flush=True)
                trained = call('train', contender, minutes, seed, tmp)
                assert trained['seconds'] < 60*minutes + 5, trained
                weights.write_bytes(Path(trained.pop('weights')).read_bytes())
            r = dict(contender=contender, seed=seed, minutes=minutes, device=device_info(pick_device('cpu'))['name'], **{k: v for k, v in versions().items() if k in ('torch', 'commit')}, **trained)
        print(f"{r['steps']:,} steps of {r['batch']}; drawing and judging {n:,} …", file=sys.stderr, flush=True)
        r |= call('judge', str(weights), n, str(grid := weights.with_suffix('.png')))
        rows = [q for q in rows if {k: q[k] for k in key} != key] + [r]
        write_atomically(out/path.name, lambda tmp: tmp.write_text(json.dumps(rows, indent=1) + '\n'))
        print(Table([row(r)]), f'the digits: {grid}', sep='\n', flush=True)
    rows = sorted((q for q in rows if q['n'] == n and q['sampling'] == SAMPLING), key=lambda q: (CONTENDERS.index(q['contender']), q['seed']))      # fewer samples have larger distances
    floor, table = rows[0]['floor'], [row(q) for q in rows]
    print(f'\n{minutes:g} minutes, {n:,} samples by {SAMPLING["sampler"]}-{SAMPLING["steps"]}, η = {SAMPLING["eta"]:g}, spacing {SAMPLING["spacing"]:.2f}, temperature {SAMPLING["temperature"]:g}')
    real = {'contender': 'real digits', 'FD': f"{floor['FD']:.2f}", 'FD / real': '1', **{k: f'{floor[k]:.3f}' for k in ('precision', 'recall')}, 'confident': f"{floor['confident']:.1%}", 'border': f"{floor['border']:.2f}"}
    print(Table(table + [{k: real.get(k) for k in table[0]}]))
    here = [q for q in rows if q['device'] == r['device']]
    for mine, c, times in ratios(here): print(f"FD of {mine}: {times:.1f} times smaller than that of {c}")
    if not ratios(here): print(f"no ratio yet: of this machine ({r['device']}) there is {', '.join(dict.fromkeys(q['contender'] for q in here))} only; the other side is trained by python benchmarks/speedrun.py --minutes {minutes:g} --only {'tutorial' if any(q['contender'] in CONTENDERS[:2] for q in here) else 'ddpm-fast'}")

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=10.); p.add_argument('--only', choices=CONTENDERS, default='ddpm-fast'); p.add_argument('--all', action='store_true')
    p.add_argument('--seeds', type=int, default=1, help='how many, from --seed on'); p.add_argument('--seed', type=int, default=0); p.add_argument('--n', type=int, default=10_000)
    p.add_argument('--out', default=str(top/'runs'/'speedrun')); p.add_argument('--worker'); p.add_argument('--judge', action='store_true', help='no training: draw and judge anew what is in the folder, after a change of the sampler or the instruments')
    a = p.parse_args()
    if a.worker: print(json.dumps(work(*json.loads(a.worker))))
    else: main(a.minutes, CONTENDERS if a.all else [a.only], range(a.seed, a.seed + a.seeds), a.n, a.out, a.judge)
