"""The log of the speedrun: what each idea gains at equal time. `python benchmarks/ideas.py [NAME ...] [--seed 0] [--minutes 3]`

Every idea is a change to one before it. It trains for the same minutes of wall clock in a process of its own, draws 2,000 digits in 50
evaluations (DDIM, η = 1 unless it says otherwise), and is judged. Rows go into results/speedrun-log.json; what is there is not measured again (--again does)."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

top = Path(__file__).resolve().parent.parent
PATH = top/'results'/'speedrun-log.json'
REPORT = dict(network=dict(channels=(32, 64, 96, 96), pad_to=32), space='Pixels', process={}, recipe=dict(batch_size=512, lr=1e-3))
FAST = dict(channels=(64, 96, 96), in_channels=4, out_channels=4, pad_to=None, attention=(False,)*3, head_dim=32)
WIDER = dict(channels=(64, 128, 128))

def but(base, **changes):
    "A recipe like `base`, but for some settings."
    return {**base, **{k: {**base[k], **v} if isinstance(v, dict) and k != 'network' else v for k, v in changes.items()}}

IDEAS = {}                                         # name: what it changes, against which other, and why it should help
def idea(name, why, source, base, **changes):
    IDEAS[name] = dict(why=why, source=source, base=base, setting=but(IDEAS[base]['setting'] if base else REPORT, **changes))

idea('the report', 'where we start', 'the report', None)
idea('batch 64', 'eight times the steps for the same images', '', 'the report', recipe=dict(batch_size=64))
idea('warm-up, clipping', 'large first steps do damage that takes time to mend', 'Goyal et al., 2017', 'batch 64', recipe=dict(warmup=100, clip_grad=1.))
idea('v', 'the network need not copy its input at high noise', 'Salimans & Ho, 2022', 'warm-up, clipping', process=dict(predict='v'))
idea('x0', 'the same, more so', 'Salimans & Ho, 2022', 'warm-up, clipping', process=dict(predict='x0'))
idea('v, weighted as ε', 'is it the weights of the times, or what is asked for?', '', 'warm-up, clipping', process=dict(predict='v', weighting='eps'))
idea('v, min-SNR', 'easy times shall not outweigh the rest', 'Hang et al., 2023', 'v', process=dict(weighting='min-snr'))
idea('v, weighted as x0', 'more weight on high noise', 'Salimans & Ho, 2022', 'v', process=dict(weighting='x0'))
idea('logit-normal', 'the middle is where it is decided', 'Esser et al., 2024', 'v', process=dict(times='logit-normal'))
idea('zero SNR, trailing', 'training and sampling begin at the same, pure noise', 'Lin et al., 2024', 'v', process=dict(zero_snr=True), spacing='trailing')
idea('batch 32', 'more steps still', '', 'v', recipe=dict(batch_size=32))
idea('batch 128', 'a better gradient', '', 'v', recipe=dict(batch_size=128))
idea('rate 2e-3', 'there is little time', '', 'v', recipe=dict(lr=2e-3))
idea('rate 5e-4', 'the steps may be too large', '', 'v', recipe=dict(lr=5e-4))
idea('Muon', 'all directions of a kernel learn at the same rate', 'Jordan et al., 2024', 'v', recipe=dict(optimizer='muon'))
idea('Muon, rate 3e-3', 'it bears more', '', 'v', recipe=dict(optimizer='muon', lr=3e-3))
idea('transport', 'noise paired with the image next to it makes straighter ways', 'Pooladian et al., 2023', 'v', trainer='Transport')
idea('v, sampled without noise', 'one way from noise to image', 'Song et al., 2021', 'v', eta=0.)
idea('transport, sampled without noise', 'is it the fresh noise, paired with nothing, that spoils it?', 'Pooladian et al., 2023', 'v, sampled without noise', trainer='Transport', eta=0.)
idea('times spread evenly', 'less noise in the gradient', 'Kingma et al., 2021', 'v', trainer='Stratified')
idea('crops', 'the border is black, and 24×24 needs no padding: 0.56 of the work', '', 'v', space='Cropped', network=dict(channels=(32, 64, 96, 96), pad_to=None))
idea('folded', '2×2 pixels as channels: no wide maps', 'Shi et al., 2016', 'v', space='Whole', network=FAST | dict(pad_to=16))
idea('crops, folded', 'both: 12×12, 6×6 and 3×3 positions', '', 'v', space='Folded', network=FAST)

idea('crops, folded, logit-normal', 'what gained alone, together', '', 'crops, folded', process=dict(times='logit-normal'))
idea('crops, folded, logit-normal, batch 128', 'small maps want large batches', '', 'crops, folded, logit-normal', recipe=dict(batch_size=128))
idea('crops, folded, logit-normal, batch 128, transformer', '36 patches of 4×4 pixels: matrix products run faster than convolutions', 'Peebles & Xie, 2023', 'crops, folded, logit-normal, batch 128', net='Patches', network=dict(width=128, blocks=6, heads=4))
BEST = 'crops, folded, logit-normal, batch 128, Muon'
idea(BEST, 'all directions of a kernel learn at the same rate', 'Jordan et al., 2024', 'crops, folded, logit-normal, batch 128', recipe=dict(optimizer='muon'))
idea(BEST + ', wider', 'the time saved, spent on channels', '', BEST, network=FAST | WIDER)
idea(BEST + ', spread evenly', 'less noise in the gradient', 'Kingma et al., 2021', BEST, trainer='Stratified')
idea(BEST + ', rate 2e-3', 'it bears more', '', BEST, recipe=dict(lr=2e-3))
idea(BEST + ', rate 4e-3', 'even more', '', BEST + ', rate 2e-3', recipe=dict(lr=4e-3))
idea(BEST + ', rate 2e-3, batch 256', 'a better gradient bears a higher rate', '', BEST + ', rate 2e-3', recipe=dict(batch_size=256))
idea(BEST + ', rate 2e-3, wider', 'the time saved, spent on channels', '', BEST + ', rate 2e-3', network=FAST | WIDER)
idea(BEST + ', transport', 'straighter ways', 'Pooladian et al., 2023', BEST, trainer='Transport')
idea(BEST + ', attention', 'what is far apart belongs together', '', BEST, network=FAST | dict(attention=(False, True, True)))

idea(BEST + ', rate 2e-3, shorter average', 'three minutes are few steps to average over', 'Karras et al., 2024', BEST + ', rate 2e-3', recipe=dict(ema=.98))
idea(BEST + ', rate 2e-3, longer average', 'or enough for a longer one', 'Karras et al., 2024', BEST + ', rate 2e-3', recipe=dict(ema=.998))
idea(BEST + ', rate 2e-3, growing average', 'over the last tenth of the steps, however many there have been', 'Karras et al., 2024', BEST + ', rate 2e-3', trainer='Growing')
idea(BEST + ', rate 2e-3, one-cycle', 'rise for a third of the time, and higher, before falling', 'Smith & Topin, 2018', BEST + ', rate 2e-3', recipe=dict(lr=4e-3, warmup=350))
idea(BEST + ', rate 2e-3, plain PyTorch', "what the engine's speed is worth: float32, no kernels of its own", '', BEST + ', rate 2e-3', trainer='Plain')
idea(BEST + ', rate 2e-3, transformer', 'the same, larger, with the winner of the optimisers', 'Peebles & Xie, 2023', BEST + ', rate 2e-3', net='Patches', network=dict(width=192, blocks=6, heads=6))

idea('coarse first', 'steps on 14×14 pixels cost a quarter, and shapes come before edges', 'Karras et al., 2018', 'logit-normal', trainer='CoarseFirst')
idea('logit-normal, Muon', "and in the report's own network", '', 'logit-normal', recipe=dict(optimizer='muon'))
idea('logit-normal, Muon, batch 128', "and in the report's own network", '', 'logit-normal, Muon', recipe=dict(batch_size=128))
idea('crops, logit-normal, Muon', "the report's own network without the border", '', 'logit-normal, Muon', space='Cropped', network=dict(channels=(32, 64, 96, 96), pad_to=None))

WINNERS = {'ddpm-fast': BEST + ', rate 2e-3', 'quick': 'logit-normal, Muon'}     # what became of it: the recipes of the list of models

def line(name):
    "What an idea is made of: itself, and what it builds on, the first first."
    return (line(IDEAS[name]['base']) if IDEAS[name]['base'] else []) + [name]

# ---- the ideas that are not part of the library

def extras():
    import torch
    import torch.nn.functional as F
    from mnistgen.lab.data import Pixels, Folded, denormalize, draw, normalize
    from mnistgen.lab.training import Trainer
    from mnistgen.unet import TimeEmbedding, UNet
    import mnistgen.ddpm as ddpm
    from torch import nn

    class Cropped(Pixels):
        "The middle 24×24 pixels."
        shape = (1, 24, 24)
        encode = staticmethod(lambda x: normalize(x)[..., 2:26, 2:26])
        decode = staticmethod(lambda x: denormalize(F.pad(x, (2,)*4, value=-1.)))

    class Whole(Pixels):
        "All pixels, in blocks of 2×2."
        shape = (4, 14, 14)
        encode = staticmethod(lambda x: F.pixel_unshuffle(normalize(x), 2))
        decode = staticmethod(lambda x: denormalize(F.pixel_shuffle(x, 2)))

    class Transport(Trainer):
        "Each image gets the noise of its batch that is nearest to it, all in all."
        def train_step(self, batch):
            from scipy.optimize import linear_sum_assignment
            def paired(f, shape, generator, device):
                out = draw(f, shape, generator, device)
                if len(shape) < 4: return out
                return out[torch.from_numpy(linear_sum_assignment(-(batch[0].flatten(1) @ out.flatten(1).T).float().numpy())[1])]
            ddpm.draw = paired
            try: return super().train_step(batch)
            finally: ddpm.draw = draw

    class Growing(Trainer):
        "Weights of the average that grow as a power of the step (Karras et al., 2024, equation 4, with a relative width of 0.1)."
        def train_step(self, batch):
            self.recipe.ema = (1 - 1/(self.step + 1))**7.94
            return super().train_step(batch)

    class Plain(Trainer):
        "float32, by PyTorch's own kernels."
        def __init__(self, *args, **kw): super().__init__(*args, **kw, plain=True)

    class Stratified(Trainer):
        "One time of each B-th of the times."
        def __init__(self, *args, **kw):
            super().__init__(*args, **kw)
            ddpm.TIMES['logit-normal'] = lambda B, T, generator, device: (torch.sigmoid(torch.special.ndtri(((torch.arange(B) + draw(torch.rand, (B,), generator, device))/B).clamp(1e-6, 1 - 1e-6)))*T).long().clamp(max=T - 1)
            ddpm.TIMES['uniform'] = lambda B, T, generator, device: ((torch.arange(B) + draw(torch.rand, (B,), generator, device))/B*T).long().clamp(max=T - 1)

    class CoarseFirst(Trainer):
        "For the first third of the time, images of half the side."
        def train_step(self, batch):
            coarse = self.seconds() < 20*self.recipe.minutes
            self.net.pad_to = 16 if coarse else 32
            return super().train_step((F.avg_pool2d(batch[0], 2), batch[1]) if coarse else batch)

    class Patches(nn.Module):
        "A transformer on patches of positions (Peebles & Xie, 2023)."
        def __init__(self, width, blocks, heads, shape=(4, 12, 12), patch=2):
            super().__init__()
            self.heads, self.patch, n, c = heads, patch, shape[1]*shape[2]//patch**2, patch**2*shape[0]
            self.enter, self.leave, self.time = nn.Linear(c, width), nn.Linear(width, c), TimeEmbedding(64)
            self.where = nn.Parameter(.02*torch.randn(n, width))
            self.blocks = nn.ModuleList(nn.ModuleDict(dict(time=nn.Linear(256, 6*width), qkv=nn.Linear(width, 3*width), out=nn.Linear(width, width), up=nn.Linear(width, 4*width), down=nn.Linear(4*width, width))) for _ in range(blocks))
            for b in self.blocks: nn.init.zeros_(b['time'].weight); nn.init.zeros_(b['time'].bias)
        def forward(self, x, t, label=None, context=None):
            norm = lambda h: F.layer_norm(h, h.shape[-1:])
            side, emb = x.shape[-1]//self.patch, self.time(t)
            h = self.enter(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.where
            for b in self.blocks:
                s1, m1, g1, s2, m2, g2 = b['time'](emb)[:, None].chunk(6, -1)
                qkv = b['qkv'](norm(h)*(1 + s1) + m1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
                h = h + g1*b['out'](F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
                h = h + g2*b['down'](F.gelu(b['up'](norm(h)*(1 + s2) + m2)))
            return F.pixel_shuffle(self.leave(norm(h)).mT.unflatten(2, (side, side)), self.patch)
    return dict(Pixels=Pixels, Folded=Folded, Cropped=Cropped, Whole=Whole, Trainer=Trainer, Transport=Transport, Growing=Growing, Plain=Plain, Stratified=Stratified, CoarseFirst=CoarseFirst, UNet=UNet, Patches=Patches)

def work(name, minutes, seed, n, since, grid):
    "Train, draw, judge."
    import torch
    from mnistgen.ddim import sample_ddim
    from mnistgen.ddpm import DDPM
    from mnistgen.lab.data import Batches, load_images, to_uint8
    from mnistgen.zoo.evaluation import evaluate
    from mnistgen.lab.plotting import save_grid
    from mnistgen.lab.training import Recipe
    from mnistgen.zoo import models as zoo
    have, s = extras(), IDEAS[name]['setting']
    space, recipe = have[s['space']](), Recipe(epochs=10_000, minutes=minutes, seed=seed, **s['recipe'])
    train, test = [load_images(split=k) for k in ('train', 'test')]
    torch.manual_seed(seed)
    process = DDPM(**s['process'])
    batches = [Batches(x, batch_size=b, seed=seed, transform=space.encode) for x, b in ((train.pixels, recipe.batch_size), (test.pixels[:2000], 250))]
    with tempfile.TemporaryDirectory() as tmp:
        t = have[s.get('trainer', 'Trainer')]('idea', have[s.get('net', 'UNet')](**s['network']), process, *batches, recipe, tmp, 'cpu', spent=time.time() - since)
        record = t.fit()
    seconds = sum(e['seconds'] for e in record['history'])
    zoo.SAMPLERS['ddim'] = lambda *a, **k: sample_ddim(*a, **k, spacing=s.get('spacing', 'leading'))
    g, start = zoo.Generator(t.average, process, space, dict(sampler='ddim', steps=50, eta=s.get('eta', 1.)), device='cpu'), time.time()
    images = g.sample(n, seed=0)
    drawn = time.time() - start
    if grid: save_grid(images[:64], grid)
    scores = evaluate(to_uint8(images))
    return dict(steps=t.step, images_per_second=t.step*recipe.batch_size/seconds, eval_loss=record['history'][-1]['eval_loss'], parameters=record['parameters'], drawn=drawn, confident=scores['confident'], border=scores['border'],
                **{k: scores['train'][k] for k in ('FD', 'FD∞', 'precision', 'recall')}, floor=scores['floor']['train']['FD'])

def main(names, minutes, seed, n, again, out):
    sys.path.insert(0, str(top))
    from mnistgen.lab.device import device_info, pick_device
    from mnistgen.lab.store import versions, write_atomically
    for name in names or IDEAS:
        rows = json.loads(PATH.read_text()) if PATH.exists() else []
        key = dict(idea=name, minutes=minutes, seed=seed, n=n)
        if not again and any({k: r[k] for k in key} == key for r in rows): continue
        if out: Path(out).mkdir(parents=True, exist_ok=True)
        grid = f'{out}/{name}-{minutes:g}-{seed}.png' if out else None
        p = subprocess.run([sys.executable, __file__, '--worker', json.dumps([name, minutes, seed, n, time.time(), grid])], env=os.environ | {'PYTHONPATH': str(top)}, stdout=subprocess.PIPE, text=True)
        if p.returncode: sys.exit(f'{name}: failed')
        r = dict(**key, **IDEAS[name], device=device_info(pick_device('cpu'))['name'], **{k: v for k, v in versions().items() if k in ('torch', 'commit')}, **json.loads(p.stdout.splitlines()[-1]))
        rows = [q for q in (json.loads(PATH.read_text()) if PATH.exists() else []) if {k: q[k] for k in key} != key] + [r]
        rows.sort(key=lambda r: (list(IDEAS).index(r['idea']), r['minutes'], r['seed']))
        write_atomically(PATH, lambda tmp: tmp.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + '\n'))
        print(f"{name} ({minutes:g} min, seed {seed}): {r['steps']} steps, {r['images_per_second']:.0f} images/s, FD {r['FD']:.2f} (∞ {r['FD∞']:.2f}; real {r['floor']:.2f}), P {r['precision']:.3f} R {r['recall']:.3f}, confident {r['confident']:.1%}, border {r['border']:.2f}", flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*'); p.add_argument('--minutes', type=float, default=3.); p.add_argument('--seed', type=int, default=0); p.add_argument('--n', type=int, default=2000)
    p.add_argument('--again', action='store_true'); p.add_argument('--out', help='folder for grids'); p.add_argument('--worker')
    a = p.parse_args()
    if a.worker: print(json.dumps(work(*json.loads(a.worker))))
    else:
        if odd := [k for k in a.names if k not in IDEAS]: p.error(f"unknown: {', '.join(odd)}; there are {', '.join(IDEAS)}")
        main(a.names, a.minutes, a.seed, a.n, a.again, a.out)
