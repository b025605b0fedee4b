"""What a few minutes of CPU are worth: `make speedrun` (10 minutes of training), or
`make speedrun MINUTES=60`.

Trains for MINUTES of wall clock from a cold start (imports and compilation count), draws 10,000
digits in 50 evaluations of the network each, judges them, prints the row beside those of the same
minutes that were measured before, and draws the grid.

    python benchmarks/speedrun.py --minutes 10 --all --seeds 2

trains every contender, one after the other, each in a fresh process. The contenders:
- ddpm-fast:   this library's fast network and recipe; the default
- ddpm:        the report's UNet with this library's recipe, `quick`
- tutorial:    the same UNet as diffusers' UNet2DModel, trained with its DDPMScheduler as its
               tutorial does it: float32, batch 16, AdamW 1e-4 with 500 steps of warm-up and a
               cosine, the linear schedule, ε
- report:      the report's recipe with the same classes: AdamW 1e-3 with a cosine, EMA 0.995, the
               cosine schedule, ε; at diffusers' best speed (bfloat16, torch.compile), batch 128
The samples of all are drawn by this library, which has been tested to be equal to diffusers."""
import argparse, json, math, os, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
from mnistgen.lab.device import print_anything
from mnistgen.lab.options import Sampling

OURS = 'ddpm-fast', 'ddpm'
THEIRS = 'tutorial', 'report'
CONTENDERS = OURS + THEIRS
SAMPLING = Sampling('ddim', 50, eta=1., spacing=2/3, temperature=.98)

# how diffusers is trained: `speed` is a contender of engine.py, `rate` arguments of a Recipe
DIFFUSERS = {
    'tutorial': dict(speed='eager', schedule='linear', batch=16, weight_decay=.01, ema=None,
                     rate=dict(lr=1e-4, lr_min=0., warmup=500)),
    'report': dict(speed='best', schedule='cosine', batch=128, weight_decay=1e-4, ema=.995,
                   rate={}),
}
BETAS = {'linear': 'linear', 'cosine': 'squaredcos_cap_v2'}           # diffusers' names

# ---- in a worker: train until the time is up, write weights

def train_ours(model, minutes, seed, out, start):
    "This library's model, by its own recipe."
    from mnistgen.zoo.train import train_model
    record = train_model(model, 'quick', minutes=minutes, seed=seed, out=out, device='cpu',
                         since=start)
    history = record['history']
    return dict(steps=history[-1]['step'], batch=record['recipe']['batch_size'],
                seconds=record['setup_seconds'] + sum(e['seconds'] for e in history),
                weights=str(out/f'{model}.safetensors'))

def train_theirs(kind, minutes, seed, out, start):
    "diffusers' network, scheduler and average, trained in its documented way."
    import torch
    from engine import reference
    from mnistgen.lab.data import load_images
    from mnistgen.lab.training import Recipe
    torch.manual_seed(seed)
    s, pixels = DIFFUSERS[kind], load_images().pixels
    net, run = reference(s['speed'], 'pixel')
    update, ema = updater(s, net, run)
    recipe, batches = Recipe(**s['rate']), shuffled(pixels, s['batch'])
    end, step, first = 60*minutes, 0, None
    while (now := time.time() - start) < end:
        first = first or now
        update(next(batches), recipe.lr_at(step, projected(step, now - first, end - now)))
        step += 1
    spent = time.time() - start
    if ema: ema.copy_to(net.parameters())
    weights = out/'ddpm.safetensors'
    save_as_ours(net, s['schedule'], round(step*s['batch']/len(pixels), 2), weights)
    return dict(steps=step, batch=s['batch'], seconds=spent, weights=str(weights))

def updater(s, net, run):
    "update(pixels, learning rate), one step of training; and the average of the weights, or None."
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel
    from engine import half
    from mnistgen.lab.data import normalize, reflect_pad
    best = s['speed'] == 'best'
    scheduler = DDPMScheduler(beta_schedule=BETAS[s['schedule']])
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=s['weight_decay'],
                                  **({'fused': True} if best else {}))
    ema = EMAModel(net.parameters(), decay=s['ema']) if s['ema'] else None
    def update(pixels, lr):
        x = reflect_pad(normalize(pixels), 32)
        if best: x = x.contiguous(memory_format=torch.channels_last)
        ε, t = torch.randn_like(x), torch.randint(1000, (len(x),))
        with half(s['speed']): answer = run(scheduler.add_noise(x, ε, t), t).sample
        F.mse_loss(answer.float(), ε).backward()
        for group in optimizer.param_groups: group['lr'] = lr
        optimizer.step()
        optimizer.zero_grad()
        if ema: ema.step(net.parameters())
    return update, ema

def shuffled(x, batch_size):
    "Batches of x for ever, in a new order each epoch; what is left of an epoch is left out."
    import torch
    while True:
        order = torch.randperm(len(x))
        for i in range(len(x)//batch_size): yield x[order[i*batch_size:][:batch_size]]

def projected(steps, spent, left):
    "How many steps there will be, going on like this: the rate follows the clock, as ours does."
    return steps + math.ceil(left*steps/spent) if steps else 10**9

def save_as_ours(net, schedule, epochs, path):
    "Write diffusers' network as a checkpoint of this library."
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.store import save_checkpoint
    from mnistgen.unet import UNet
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    mine, process = UNet.from_diffusers(weights, pad_to=32), DDPM(schedule=schedule)
    header = dict(model='ddpm', network=mine.config, process_config=process.config, epochs=epochs,
                  train_loss=None, eval_loss=None)
    save_checkpoint(path, mine.state_dict(), header)

# ---- in another: draw and judge

def judge(weights, n, grid):
    "Draw samples with these weights, as a grid too, and score them."
    import mnistgen
    from mnistgen.lab.data import to_uint8
    from mnistgen.lab.plotting import save_grid
    from mnistgen.zoo.evaluation import evaluate
    g, start = mnistgen.load(weights, 'cpu'), time.time()
    images = g.sample(n, **SAMPLING.json(), seed=0)
    drawn = time.time() - start
    save_grid(images[:64], grid)
    parameters = sum(p.numel() for p in g.net.parameters())
    return dict(n=n, sampling=SAMPLING.json(), drawn=drawn, parameters=parameters,
                **kept_scores(evaluate(to_uint8(images))))

def kept_scores(s):
    "What a row keeps of the scores, and of those of real digits."
    distances, plain = ('FD', 'FD∞', 'precision', 'recall'), ('confident', 'border')
    floor = {k: s['floor']['train'][k] for k in distances} | {k: s['floor'][k] for k in plain}
    return {**{k: s[k] for k in (*plain, 'chi2', 'novelty')},
            **{k: s['train'][k] for k in distances}, 'floor': floor}

# ---- in the parent

def call(job, *args):
    "This script in a fresh process, with the last line of what it prints."
    task = json.dumps([job, *args, time.time()])
    p = subprocess.run([sys.executable, __file__, '--worker', task],
                       env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE, text=True)
    if p.returncode: sys.exit(f'{job}: failed')
    return json.loads(p.stdout.splitlines()[-1])

def work(job, *args):
    *args, start = args
    if job == 'judge': return judge(*args)
    contender, minutes, seed, out = args
    train = train_ours if contender in OURS else train_theirs
    return train(contender, minutes, seed, Path(out), start)

class Track:
    "The rows of all that trained for the same minutes, and the folder where new ones go."
    def __init__(self, minutes, n, out):
        self.minutes, self.n, self.out = minutes, n, Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        name = f'speedrun-{minutes:g}.json'
        self.path = self.out/name
        found = [p for p in (self.path, top/'results'/name) if p.exists()]     # earlier, or ours
        self.rows = json.loads(found[0].read_text()) if found else []

    def weights(self, contender, seed):
        return self.out/f'speedrun-{self.minutes:g}-{contender}-{seed}.safetensors'

    def is_of(self, r, contender, seed):
        return (r['contender'], r['seed'], r['n']) == (contender, seed, self.n)

    def kept_weights(self):
        "(contender, seed) of all whose weights are in the folder."
        of = [(r['contender'], r['seed']) for r in self.rows if r['n'] == self.n]
        return [(c, seed) for c, seed in of if self.weights(c, seed).exists()]

    def train(self, contender, seed):
        "Train, and keep the weights: a row without scores."
        from mnistgen.lab.device import device_info, pick_device
        from mnistgen.lab.store import versions
        say(f'{contender}, seed {seed}: {self.minutes:g} minutes of training …')
        with tempfile.TemporaryDirectory() as tmp:
            trained = call('train', contender, self.minutes, seed, tmp)
            assert trained['seconds'] < 60*self.minutes + 5, trained
            weights = Path(trained.pop('weights')).read_bytes()
            self.weights(contender, seed).write_bytes(weights)
        code = {k: v for k, v in versions().items() if k in ('torch', 'commit')}
        return dict(contender=contender, seed=seed, minutes=self.minutes,
                    device=device_info(pick_device('cpu'))['name'], **code, **trained)

    def judge(self, r):
        "Draw and judge: the row with its scores. Prints and stores it."
        from mnistgen.lab.plotting import Table
        from mnistgen.lab.store import write_atomically
        weights = self.weights(r['contender'], r['seed'])
        grid = weights.with_suffix('.png')
        say(f"{r['steps']:,} steps of {r['batch']}; drawing and judging {self.n:,} …")
        r = r | call('judge', str(weights), self.n, str(grid))
        others = [q for q in self.rows if not self.is_of(q, r['contender'], r['seed'])]
        self.rows = others + [r]
        text = json.dumps(self.rows, indent=1) + '\n'
        write_atomically(self.path, lambda tmp: tmp.write_text(text))
        print(Table([columns(r)]), f'the digits: {grid}', sep='\n', flush=True)
        return r

    def comparable(self):
        "The rows of as many samples, drawn alike: fewer samples have larger distances."
        alike = [r for r in self.rows if r['n'] == self.n and r['sampling'] == SAMPLING.json()]
        return sorted(alike, key=lambda r: (CONTENDERS.index(r['contender']), r['seed']))

    def show(self, device):
        "Print all rows beside each other, and the ratios of those of a machine."
        from mnistgen.lab.plotting import Table
        rows = self.comparable()
        table, real = [columns(r) for r in rows], real_columns(rows[0]['floor'])
        print(f'\n{self.minutes:g} minutes, {self.n:,} samples by {SAMPLING}')
        print(Table(table + [{k: real.get(k) for k in table[0]}]))
        here = [r for r in rows if r['device'] == device]
        for mine, c, times in ratios(here):
            print(f'FD of {mine}: {times:.1f} times smaller than that of {c}')
        if not ratios(here): print(self.what_is_missing(here))

    def what_is_missing(self, here):
        "What to run for a ratio."
        names = list(dict.fromkeys(r['contender'] for r in here))
        other = 'tutorial' if set(names) & set(OURS) else 'ddpm-fast'
        return (f"no ratio yet: of this machine ({here[0]['device']}) there is {', '.join(names)} "
                'only; the other side is trained by python benchmarks/speedrun.py '
                f'--minutes {self.minutes:g} --only {other}')

def say(text): print(text, file=sys.stderr, flush=True)

def columns(r):
    "What is printed of a row."
    return {'contender': r['contender'], 'seed': r['seed'], 'steps': r['steps'],
            'batch': r['batch'], 'images/s': f"{r['steps']*r['batch']/r['seconds']:.0f}",
            **score_columns(r, r['floor']), 'device': r['device']}

def real_columns(floor):
    "The same of real digits."
    return {'contender': 'real digits', **score_columns(floor, floor), 'FD / real': '1'}

def score_columns(r, floor):
    return {'FD': f"{r['FD']:.2f}", 'FD / real': f"{r['FD']/floor['FD']:.1f}",
            'precision': f"{r['precision']:.3f}", 'recall': f"{r['recall']:.3f}",
            'confident': f"{r['confident']:.1%}", 'border': f"{r['border']:.2f}"}

def ratios(
    rows # of one machine, since minutes of two do not compare
): # [(ours, theirs, how many times smaller the distance of ours is)] of all there are
    of = lambda c: [r['FD'] for r in rows if r['contender'] == c]
    mean = {c: sum(of(c))/len(of(c)) for c in CONTENDERS if of(c)}
    pairs = [(mine, c) for mine in OURS for c in THEIRS if mine in mean and c in mean]
    return [(mine, c, mean[c]/mean[mine]) for mine, c in pairs]

def train_and_judge(minutes, contenders, seeds, n, out):
    track = Track(minutes, n, out)
    for seed in seeds:
        for contender in contenders: r = track.judge(track.train(contender, seed))
    track.show(r['device'])

def judge_again(minutes, n, out):
    "Draw and judge anew what is in the folder, with the weights that are there."
    track = Track(minutes, n, out)
    todo = track.kept_weights()
    if not todo:
        sys.exit(f'{out}: no weights of {minutes:g} minutes, '
                 f'whose {n:,} samples were judged before')
    for contender, seed in todo:
        r = track.judge(next(q for q in track.rows if track.is_of(q, contender, seed)))
    track.show(r['device'])

def parser():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=10.)
    p.add_argument('--only', choices=CONTENDERS, default='ddpm-fast')
    p.add_argument('--all', action='store_true')
    p.add_argument('--seeds', type=int, default=1, help='how many, from --seed on')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--n', type=int, default=10_000)
    p.add_argument('--out', default=str(top/'runs'/'speedrun'))
    p.add_argument('--worker')
    p.add_argument('--judge', action='store_true',
                   help='no training: draw and judge anew what is in the folder, after a change '
                        'of the sampler or the instruments')
    return p

if __name__ == '__main__':
    print_anything()
    a = parser().parse_args()
    if a.worker: print(json.dumps(work(*json.loads(a.worker))))
    elif a.judge: judge_again(a.minutes, a.n, a.out)
    else:
        contenders = CONTENDERS if a.all else [a.only]
        train_and_judge(a.minutes, contenders, range(a.seed, a.seed + a.seeds), a.n, a.out)
